"""Runs tests of solutions that are in another interpreter, one after the other. From the judge: J with the prompt, the
tests, the names that the tests may call, and the number of lines before the tests. To it: C for each call, answered
with V; then E if the tests came to their end, F if something was raised, M if a module is missing.

What the solution answers is read as plain data, so nothing of it runs here.
"""

import builtins


class NotPlainData(BaseException):
    """Ends the tests, which cannot pass any more."""


class Job:
    def __init__(self, receive, send):
        self.receive, self.send = receive, send
        # Why the tests might have failed though the solution is right.
        self.doubt = ""
        # What ended them, whatever they made of it.
        self.ended = None
        # The exception of the last call, and its description.
        self.raised = None, None

    def cannot(self, doubt):
        self.doubt = doubt
        self.ended = NotPlainData(doubt)
        return self.ended

    def call(self, name, arguments, named):
        writer = Writer()
        try:
            writer.write((name, arguments, named))
        except (CannotCross, RecursionError) as error:
            raise self.cannot("it is given what is not plain data: %s" % error) from None
        if writer.converted:
            raise self.cannot("it is given what is not plain data: %s" % writer.converted)
        self.send(b"C", writer.content())
        reader = Reader(self.receive()[1], writer.containers)
        try:
            outcome, value, changes = reader.read()
            converted = reader.read()
            if len(changes) not in (0, len(writer.containers)):
                raise ValueError("changes of %d containers" % len(changes))
            for container, items in zip(writer.containers, changes):
                CONTENTS[type(container)][1](container, items)
            if outcome == "raised":
                kind, parts, description = value
                name, line, said = map(str, description)
        except Exception:
            raise self.cannot("it answered with what is no data") from None
        if outcome == "raised":
            error = self.exception(kind, parts, said)
            self.raised = error, (name, line, said)
            raise error
        if outcome != "returned":
            raise self.cannot("it returned what is not plain data: %s" % value)
        if converted:
            self.doubt = "it returned a %s" % converted
        return value

    def exception(self, name, parts, said):
        kind = getattr(builtins, name, None) if type(name) is str else None
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = Exception
        # Either would end a loop over calls as if there were no more of them.
        if issubclass(kind, (StopIteration, StopAsyncIteration)):
            kind = RuntimeError
        try:
            return kind(*parts)
        except Exception:
            return Exception(said)

    def run(self, prompt, tests, names, lines):
        space = {}
        for source in (prompt, prompt + "    pass\n"):
            try:
                code = compile(source, "<program>", "exec", dont_inherit=True)
            except SyntaxError:
                continue
            exec(code, space)
            break
        space.update((name, function(self, name)) for name in names)
        exec(compile("\n" * lines + tests, "<program>", "exec", dont_inherit=True), space)
        if self.ended:
            raise self.ended


def function(job, name):
    """What stands for a function of the solution; it can be called, and that is all."""

    class Function:
        def __call__(self, *arguments, **named):
            return job.call(name, arguments, named)

        def __getattribute__(self, attribute):
            job.doubt = "its attribute %s is looked at" % attribute
            raise AttributeError(attribute)

    return Function()


def main():
    receive, send = start()
    send(b"R")
    while True:
        job = Job(receive, send)
        try:
            job.run(*Reader(receive()[1]).read())
        except BaseException as error:
            own = error is not job.raised[0]
            if own and isinstance(error, ImportError):
                send(b"M", words("%s: %s" % (type(error).__name__, error)))
                continue
            if own and isinstance(error, NameError):
                job.doubt = str(error)
            send(b"F", words(job.doubt, *(describe(error) if own else job.raised[1])))
        else:
            send(b"E")


main()
