"""Runs one program and says whether it ran to its end. The judge (judge.rs) starts it as `python3 -c`.

Pipes: descriptor 0 brings the program (eight bytes of length, then UTF-8) and, after the tests, a nonce;
descriptor 1 takes the answers: R when the program is there, F and a reason when it raised something, E when it
came to its end, then the nonce. The nonce is sent only after the E, so nothing that a program prints, returns or
leaves behind can contain it.
"""

import os
import sys


def main():
    # Bound before the program runs: it may replace what the modules hold.
    read, write, leave = os.read, os.write, os._exit
    # What the judge's process had open stays closed here.
    os.closerange(3, 1 << 16)
    source_pipe, answer_pipe = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    # An empty entry would mean the working folder.
    sys.path[:] = [entry for entry in sys.path if entry]

    def receive(count):
        received = b""
        while len(received) < count:
            block = read(source_pipe, count - len(received))
            if not block:
                leave(1)
            received += block
        return received

    source = receive(int.from_bytes(receive(8), "little")).decode("utf-8")
    write(answer_pipe, b"R")
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), {})
    except BaseException as error:
        # First the verdict: to describe the exception may run code of the program.
        write(answer_pipe, b"F")
        write(answer_pipe, describe(error, source).encode("utf-8", "replace"))
        leave(0)
    write(answer_pipe, b"E")
    write(answer_pipe, receive(16))
    leave(0)


def describe(error, source):
    text = type(error).__name__
    if isinstance(error, SystemExit):
        return "exited by %s(%.100r) before its tests ended" % (text, error.code)
    said = str(error).strip().split("\n")[0]
    if isinstance(error, SyntaxError):
        said, line = error.msg, error.lineno
    else:
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<program>":
                line = trace.tb_lineno
            trace = trace.tb_next
    if said:
        text += ": %.200s" % said
    if line is not None and 0 < line <= source.count("\n") + 1:
        text += " at line %d: %.200s" % (line, source.split("\n")[line - 1].strip())
    return text


main()
