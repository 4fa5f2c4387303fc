"""What is run in a machine to see which of its work would be lost with it, and how its answer is read.

The repositories are not trusted. Nothing that they configure is run: no monitor, hook, filter, alias, pager
or remote; nothing is written, and `timeout` ends it all. The answer is taken for what it is: a stranger's.
"""

import re
from datetime import datetime

from attrs import evolve

from vmd.model.workspace import GitState
from vmd.providers.base import Execution

LOOK_SECONDS = 10  # until the machine ends the look by itself
MAX_ANSWER_BYTES = 64 * 1024
MARK = "VMD_GIT_LOOK"  # in the environment of a look, and of nothing else

# One line a repository: changed or new files, commits that no remote branch has, stashes, the branch or "-".
# "bad" is one that cannot be read; "loose" are files outside any; "end" is missing where it was cut off.
# A clone inside another is counted by itself alone.
_LOOK = r"""
cap=1000
line_end='
'
count() {
    { "$@" 2>/dev/null || echo '!'; } | {
        n=0
        while IFS= read -r line; do
            case $line in
            '!') exit 1 ;;
            '?? '*/) inner=${line#'?? '}; [ -e "$inner.git" ] && continue ;;
            esac
            n=$((n + 1))
            [ "$n" -lt "$cap" ] || break
        done
        echo "$n"
    }
}
look() (
    cd "$1" || exit 1
    GIT_CEILING_DIRECTORIES=$(dirname "$PWD")
    export GIT_CEILING_DIRECTORIES
    set -- --no-pager -c 'safe.directory=*' -c core.fsmonitor=false -c core.hooksPath=/dev/null \
        -c status.submoduleSummary=false
    for key in $(git "$@" config --name-only --get-regexp '^filter\.'); do
        case $key in
        *=*) exit 1 ;;
        *.required) set -- "$@" -c "$key=false" ;;
        *) set -- "$@" -c "$key=" ;;
        esac
    done
    [ "$(git "$@" rev-parse --is-inside-work-tree)" = true ] || exit 1
    head=HEAD
    git "$@" rev-parse --quiet --verify HEAD >/dev/null || head=
    changed=$(count git "$@" status --porcelain --untracked-files=normal \
        --ignore-submodules=dirty --no-renames) &&
        unpushed=$(git "$@" rev-list --count --max-count=$cap --branches $head --not --remotes) || exit 1
    stashes=0
    if git "$@" rev-parse --quiet --verify refs/stash >/dev/null; then
        stashes=$(git "$@" rev-list --walk-reflogs --count --max-count=$cap refs/stash --) || exit 1
    fi
    branch=$(git "$@" symbolic-ref --short --quiet HEAD) || branch=-
    echo "repo $changed $unpushed $stashes $branch"
)
exec 2>/dev/null
set -f
IFS=$line_end
if [ -e .git ]; then look . || echo bad; fi
found=$(find . -maxdepth 4 -name .git -prune -print) || echo bad
n=0
for each in $found; do
    [ "$each" != ./.git ] || continue
    n=$((n + 1))
    if [ "$n" -gt 50 ]; then echo bad; break; fi
    look "${each%/.git}" || echo bad
done
if [ ! -e .git ]; then
    set --
    for each in $found; do set -- "$@" -path "${each%/.git}" -prune -o; done
    loose=$(count find . "$@" ! -type d -print) || echo bad
    echo "loose ${loose:-0}"
fi
echo end
"""
_RUN = f"""
limit=
command -v timeout >/dev/null && limit='timeout -s KILL {LOOK_SECONDS}'
exec env -i PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH" HOME="${{HOME:-/}}" \
    LC_ALL=C GIT_OPTIONAL_LOCKS=0 GIT_NO_LAZY_FETCH=1 GIT_ALLOW_PROTOCOL=none GIT_TERMINAL_PROMPT=0 \
    GIT_ASKPASS=true GIT_SSH_COMMAND=false GIT_PAGER=cat $limit /bin/sh -c "$1" vmd
"""
_REPO = re.compile(r"repo ([0-9]{1,5}) ([0-9]{1,5}) ([0-9]{1,5}) ([^\x00-\x20\x7f]{1,255})")
_LOOSE = re.compile(r"loose ([0-9]{1,5})")

LOOK = Execution(argv=("/bin/sh", "-c", _RUN, "vmd", _LOOK), env={MARK: "1"})


def read_answer(answer: bytes, looked_at: datetime) -> GitState | None:
    """Return what a look found, None where it found out nothing; what cannot be read is not clean."""
    lines = answer.decode("utf-8", "replace").splitlines()
    if not lines:
        return None
    state = GitState(looked_at=looked_at, branch=None, uncommitted=0, unpushed=0, stashes=0, repositories=0)
    is_whole = lines[-1] == "end"
    for line in lines[:-1] if is_whole else lines:
        state = _with_line(state, line)
    return state if is_whole else evolve(state, unreadable=state.unreadable + 1)


def _with_line(state: GitState, line: str) -> GitState:
    if repo := _REPO.fullmatch(line):
        is_first = state.repositories == 0 and repo[4] != "-"
        return evolve(
            state,
            branch=repo[4] if is_first else state.branch,
            uncommitted=state.uncommitted + int(repo[1]),
            unpushed=state.unpushed + int(repo[2]),
            stashes=state.stashes + int(repo[3]),
            repositories=state.repositories + 1,
        )
    if loose := _LOOSE.fullmatch(line):
        return evolve(state, loose=int(loose[1]))
    return evolve(state, unreadable=state.unreadable + 1)
