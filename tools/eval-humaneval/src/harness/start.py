"""What each of the judge's interpreters begins with: `python3 -c`, with the folders of its packages as arguments.

Pipes: descriptor 0 brings messages of the judge, descriptor 1 takes those to it. A message is a letter, the length of
its content in four bytes (little endian), and the content. What is printed goes to descriptor 2.
"""

import os
import sys


def start():
    """Puts the pipes out of reach of what prints and reads; the functions that receive and send messages."""
    # Bound before any program runs: it may replace what the modules hold.
    read, write, leave = os.read, os.write, os._exit
    # What the judge's process had open stays closed here.
    os.closerange(3, 1 << 16)
    source, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    # An empty entry would mean the working folder.
    sys.path[:] = [entry for entry in sys.path if entry] + sys.argv[1:]
    del sys.argv[1:]

    def take(count):
        taken = []
        while count:
            block = read(source, count)
            if not block:
                leave(1)
            taken.append(block)
            count -= len(block)
        return b"".join(taken)

    def receive():
        letter, length = take(1), int.from_bytes(take(4), "little")
        return letter, take(length)

    def send(letter, content=b""):
        rest = memoryview(letter + len(content).to_bytes(4, "little") + content)
        while rest:
            rest = rest[write(answers, rest) :]

    return receive, send


def describe(error):
    """The name of an exception, the line of the program that it comes from, and what it says."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return name, "", "%.100r" % (error.code,)
    said = str(error)
    if isinstance(error, SyntaxError):
        said, line = error.msg, error.lineno
    else:
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<program>":
                line = trace.tb_lineno
            trace = trace.tb_next
    return name, "" if line is None else str(line), "%.200s" % said.strip().split("\n")[0]


def words(*parts):
    """One line for each part."""
    return "\n".join(part.replace("\n", " ") for part in parts).encode("utf-8", "replace")
