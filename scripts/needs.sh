#!/bin/sh
# What a word of the Makefile lacks on this machine: `sh scripts/needs.sh WORD` prints the Debian packages
# on one line, those that it can do without after a "?". Nothing is changed, nothing is fetched.
# POSIX sh, since a bare system has no other language.
set -eu
word=$1
table=${0%/*}/../requirements/debian.txt
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# found WHAT: one of the programs or files a|b|c is there.
found() (
    IFS='|'
    for one in $1; do
        case $one in
        /*)
            IFS=
            for file in $one; do [ -e "$file" ] && return 0; done
            IFS='|'
            ;;
        *) command -v "$one" >/dev/null 2>&1 && return 0 ;;
        esac
    done
    return 1
)

needed= welcome=
while read -r package words shown _; do
    case $package in '' | '#'*) continue ;; esac
    [ "$package" != python3-venv ] || continue # scripts/setup.sh looks for it more closely
    case ,$words, in
    *",$word,"*) found "$shown" || needed="$needed $package" ;;
    *",$word?,"*) found "$shown" || welcome="$welcome $package" ;;
    esac
done <"$table"
[ -z "$needed$welcome" ] || echo "${needed# }${welcome:+ ?${welcome# }}"
