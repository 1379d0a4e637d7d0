"""Runs a solution and answers calls of its functions. To the judge: R when the solution is there, L when it has been
run, V for each call (C), F when something ends it.

It runs in the interpreter of the solution, which may do with all of this what it wants. The one thing it can bring about
is an answer to a call.
"""

import builtins


def main():
    leave = os._exit
    receive, send = start()
    source = receive()[1].decode("utf-8")
    send(b"R")
    space = {}
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), space)
    except BaseException as error:
        send(b"F", words("", *describe(error)))
        leave(0)
    send(b"L")
    while True:
        called = receive()[1]
        reader = Reader(called)
        name, arguments, named = reader.read()
        try:
            if name not in space:
                raise NameError("name %r is not defined" % name)
            outcome = "returned", space[name](*arguments, **named)
        except Exception as error:
            outcome = "raised", raised(error)
        except BaseException as error:
            send(b"F", words("", *describe(error)))
            leave(0)
        send(b"V", answer(outcome, reader.containers, called, (name, arguments, named)))


def raised(error):
    """The class that a test could name in an `except`, the arguments, and the description."""
    known = next(kind for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    writer = Writer()
    try:
        writer.write(error.args)
        arguments = error.args
    except Exception:
        arguments = (str(error),)
    return known.__name__, arguments, describe(error)


def answer(outcome, containers, called, call):
    """What came of a call, and what the containers of its arguments hold now if that is not what they held."""
    try:
        after = Writer()
        after.write(call)
        changes = ()
        if after.content() != called:
            changes = tuple(tuple(CONTENTS[type(container)][0](container)) for container in containers)
        writer = Writer(containers)
        writer.write((*outcome, changes))
        converted = writer.converted
        writer.write(converted)
        return writer.content()
    except Exception as error:
        said = str(error) if isinstance(error, CannotCross) else type(error).__name__
        writer = Writer()
        writer.write(("cannot cross", said, ()))
        writer.write(said)
        return writer.content()


main()
