"""Repositories that would run programs of their own, if who looks at them let them."""

SENTINEL = "/tmp/was-run"
# Run in an empty directory with git, as whoever owns it. Every program that it names writes the sentinel.
HOSTILE = r"""
set -e
rm -f /tmp/was-run*
program=$PWD/program
printf '#!/bin/sh\necho "$0 $*" >>/tmp/was-run\ncat\n' >"$program"
chmod +x "$program"
git init -q -b main repo
cd repo
git config user.name x
git config user.email x@x.test
printf 'plain\n' >plain
printf 'held\n' >held.dat
git add .
git commit -q -m one
printf '* filter=evil\n' >.gitattributes
git config filter.evil.clean "$program"
git config filter.evil.smudge "$program"
git config filter.evil.process "$program"
git config filter.evil.required true
git config 'filter.with space.clean' "$program"
for hook in post-index-change pre-auto-gc reference-transaction post-checkout; do
    cp "$program" .git/hooks/$hook
done
git config core.hooksPath "$PWD/.git/hooks"
git config core.fsmonitor "$program"
git config core.pager "$program"
git config pager.status "$program"
git config core.editor "$program"
git config core.sshCommand "$program"
git config core.askPass "$program"
git config gpg.program "$program"
git config log.showSignature true
git config diff.external "$program"
git config alias.status "!$program"
git config alias.rev-list "!$program"
git config credential.helper "!$program"
git config remote.origin.url "ext::$program"
git config remote.origin.promisor true
git config remote.origin.partialclonefilter blob:none
git config protocol.ext.allow always
git config extensions.partialClone origin
git config status.submoduleSummary true
git config status.showUntrackedFiles no
touch plain held.dat
printf 'x' >>plain
printf 'new\n' >new
rm -f .git/objects/$(git rev-parse HEAD:held.dat | sed 's|^\(..\)|\1/|')
rm -f /tmp/was-run*
"""
