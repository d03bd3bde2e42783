#!/bin/sh
# Share what this checkout has built: push it to a DVC remote, and clone the project for a colleague who pulls it.
#
#   docs/team.sh REMOTE CLONE
#   docs/team.sh /mnt/team/zoo ../colleague
#
# REMOTE is a folder or any address that `dvc remote add` takes; CLONE is a folder that does not exist yet. The clone
# reads the archives and shards of this checkout; on another machine, set ACTIONZOO_DATA to a folder that it sees, or
# build them there: dvc repro --force resize@256 frames@320
set -eu
if [ $# -ne 2 ]; then
    echo "usage: docs/team.sh REMOTE CLONE" >&2
    exit 2
fi
here=$(pwd)
dvc remote add --force --default team "$1"
git add .dvc/config dvc.lock
git diff --cached --quiet -- .dvc/config dvc.lock ||
    git commit --quiet --message "Share what was built" -- .dvc/config dvc.lock
dvc push --run-cache
git clone --quiet "$here" "$2"
cd "$2"
export ACTIONZOO_DATA="${ACTIONZOO_DATA:-$here/data}"
dvc pull --run-cache $(actionzoo built)
echo "now, in $2: export ACTIONZOO_DATA=$ACTIONZOO_DATA; dvc repro $(actionzoo built | tr '\n' ' ')"
