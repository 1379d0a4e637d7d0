"""Completes in Vim with llama.vim, on a running server.

    python3 llama_vim.py BASE_URL PLUGIN_FOLDER [--key KEY]

PLUGIN_FOLDER is a checkout of ggml-org/llama.vim (it is in no package registry). Vim 9 and curl must be
there. A file is opened, a completion is asked for in the middle of it, and accepted; the exit code is 1 if no
hint came, or the file is as it was.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = 'def add(a, b):\n    """The sum of a and b."""\n    retu\n\n\ndef main():\n    print(add(1, 2))\n'
# A hint is shown in insert mode alone; `feedkeys` with `!` keeps Vim in it until the hint came or the time is over.
SCRIPT = """
set nocompatible hidden noswapfile nomore
let &runtimepath = '{plugin},' .. &runtimepath
let g:llama_config = {{'endpoint_fim': '{base}/infill', 'api_key': '{key}', 'auto_fim': v:false, 't_max_predict_ms': 60000}}
runtime plugin/llama.vim
function! Wait(timer)
    let s:waited += 1
    if llama#is_fim_hint_shown() || s:waited > {seconds} * 10
        let g:shown = llama#is_fim_hint_shown()
        if g:shown
            call llama#fim_accept('full')
        endif
        call timer_stop(a:timer)
        call writefile(getline(1, '$'), '{out}/text')
        call writefile([string(g:shown)], '{out}/shown')
        qall!
    endif
endfunction
let s:waited = 0
edit {out}/file.py
call llama#enable()
call cursor(3, 9)
call timer_start(100, function('Wait'), {{'repeat': -1}})
call timer_start(300, {{-> llama#fim(-1, -1, v:false, [], v:false)}})
call feedkeys('A', 'n!')
"""


def main():
    parser = argparse.ArgumentParser(description="Completes in Vim with llama.vim.")
    parser.add_argument("base")
    parser.add_argument("plugin", type=Path)
    parser.add_argument("--key", default="")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if not (options.plugin / "autoload/llama.vim").exists():
        sys.exit(f"error: {options.plugin} has no autoload/llama.vim: give a checkout of ggml-org/llama.vim")
    with tempfile.TemporaryDirectory() as out:
        out = Path(out)
        (out / "file.py").write_text(TEXT)
        settings = dict(
            plugin=options.plugin.resolve(),
            base=options.base.rstrip("/"),
            key=options.key,
            out=out,
            seconds=options.seconds,
        )
        (out / "drive.vim").write_text(SCRIPT.format(**settings))
        # Vim wants a terminal: `script` gives it one, whose input stays open, since its end is a key to Vim.
        vim = subprocess.Popen(
            ["script", "--quiet", "--command", f"vim -u NONE -i NONE -S {out}/drive.vim", "/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        )
        try:
            vim.wait(options.seconds + 30)
        except subprocess.TimeoutExpired:
            vim.kill()
            sys.exit("error: Vim does not end")
        if not (out / "text").exists():
            sys.exit("error: Vim ended before the drive did")
        text = (out / "text").read_text()
        if (out / "shown").read_text().strip() not in ("1", "v:true"):
            sys.exit(f"error: no completion was shown in {options.seconds} s")
        if text == TEXT or not text.startswith(TEXT[: TEXT.index("retu") + 4]):
            sys.exit(f"error: the accepted text is not the file and a completion:\n{text}")
        print(f"ok: llama.vim\n{text}")


if __name__ == "__main__":
    main()
