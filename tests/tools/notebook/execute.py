"""Runs a notebook as Colab does, cell after cell in one kernel: execute.py NOTEBOOK FOLDER OUT INTERRUPT

The notebook with what its cells said is written to OUT, also where a cell fails. Once the file INTERRUPT is there, the cell that
runs is stopped once, as a person does. Prints the error of the cell that ended it.
"""

import os
import signal
import sys
import threading
import time

import nbclient
import nbformat

notebook, folder, out, interrupt = sys.argv[1:]
book = nbformat.read(notebook, as_version=4)
client = nbclient.NotebookClient(book, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}})


def stop():
    while not os.path.exists(interrupt):
        time.sleep(0.05)
    os.kill(client.km.provisioner.pid, signal.SIGINT)


threading.Thread(target=stop, daemon=True).start()
try:
    client.execute()
except nbclient.exceptions.CellExecutionError as error:
    print(error.ename, error.evalue)
    sys.exit(1)
finally:
    nbformat.write(book, out)
