import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmd.orchestrator.placeholders import Misplaced, names_in, replace, require_known, shell_line, variable_of

# Where a placeholder may stand, each printing exactly what it was given.
PLACES = [
    "printf %s {{text}}",
    'printf %s "{{text}}"',
    "printf %s ''{{ text }}''",
    """printf %s "$(printf %s "{{text}}_")" | sed '$ s/_$//'""",
    "printf %s `printf '' `{{text}}",
    "(printf %s {{text}})",
    "printf '%s' \"it's\" >/dev/null; printf %s {{text}} # don't mind",
    "# don't mind\nprintf %s {{text}}",
    r"printf %s \'{{text}}\' | sed '1 s/^.//; $ s/.$//'",
    'x="a{{text}}"; printf %s "${x#a}"',
    "case x in x) printf %s {{text}} ;; esac",
    "if [ {{text}} = {{text}} ]; then printf %s {{text}}; fi",
    "( case x in x) printf %s {{text}} ;; esac )",
]


def run(line: str, text: str) -> bytes:
    """Return what a shell prints that has the text in its environment."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", variable_of("text"): text}
    done = subprocess.run(
        ["/bin/sh", "-c", shell_line(line)], env=environment, capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b""), (line, done.stderr)
    return done.stdout


@pytest.mark.parametrize("line", PLACES)
def test_a_text_stays_one_wherever_it_stands(line: str) -> None:
    for text in (
        "'; touch owned; '",
        '"; touch owned; "',
        "$(touch owned)",
        "`touch owned`",
        "a  *  b",
        "$HOME",
    ):
        assert run(line, text) == text.encode()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PLACES[:8] + PLACES[9:]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda text: not text.endswith("\n")
    ),
)
@example(PLACES[0], "'; rm -rf /; echo '")
@example(PLACES[1], '"$(id)"')
@example(PLACES[2], "a\n\tb \\")
def test_any_text_arrives_exactly(line: str, text: str) -> None:
    if line.startswith("if [") and text in ("(", "!", "-a", "-o"):
        return  # words of the test command itself
    assert run(line, text) == text.encode()


@settings(max_examples=200, deadline=None)
@given(st.text("'\"`$(){}\\# \nx;|&", max_size=12), st.text("'\"`$(){}\\# \nx;|&", max_size=12))
def test_no_line_takes_a_text_for_its_own(before: str, after: str) -> None:
    """However wrongly a line is read, what it gets stays out of its commands."""
    try:
        line = shell_line(f"{before}{{{{text}}}}{after}")
    except Misplaced:
        return
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": "/nowhere", variable_of("text"): "'\"`; echo owned >&2 #`\"'; echo owned >&2"},
        capture_output=True,
        timeout=10,
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    assert b"owned\n" not in done.stderr.replace(b"echo owned", b"")


def test_single_quotes_are_refused() -> None:
    with pytest.raises(Misplaced, match="single quotes"):
        shell_line("echo 'Hello {{text}}'")


def test_texts_take_the_place_of_placeholders_once() -> None:
    assert replace("{{a}} {{ b }} {{c}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2 {{c}}"
    assert names_in("{{a}} {{ b }} {{.Names}} {{ }} {{A-b}}") == {"a", "b", "A-b"}


def test_what_stands_for_nothing_is_named() -> None:
    with pytest.raises(
        Misplaced, match=r"has \{\{typo\}\}, which stands for nothing; known here are: \{\{a\}\}"
    ):
        require_known("{{a}}{{typo}}", {"a"})
    require_known("docker ps --format '{{.Names}}'", ())
