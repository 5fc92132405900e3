#!/bin/sh
# Sets up what a word of the Makefile needs, from a bare Debian or Ubuntu on: `sh scripts/setup.sh WORD`.
# First the system's packages, then scripts/environments.py makes the virtual environments. All that is
# missing is found before anything is fetched; where nothing is, it is quick and says nothing.
# PODLINK_NO_INSTALL=1: only say what is missing. PYTHON=python3.13: that Python and no other.
# POSIX sh, since a bare system has no other language.
set -eu
cd "${0%/*}/.."
word=$1
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

die() {
    echo "make $word: $*" >&2
    exit 1
}

# Sets $python to a Python that will do, or to nothing.
find_python() {
    python=
    for one in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            python=$one
            return 0
        fi
    done
}

# The package that lacks for a virtual environment, or nothing.
lacking_python() {
    if [ -z "$python" ]; then
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
        version=$(python3 -V 2>/dev/null) || version=
        [ -z "$version" ] || die "needs Python 3.11 or newer, python3 is $version: install a newer one" \
            "with its venv module (python3.12, python3.12-venv) and say PYTHON=python3.12 make $word"
        echo python3-venv
    elif ! "$python" scripts/environments.py --can "$word"; then
        case ${python##*/} in
        python3.*) echo "${python##*/}-venv" ;;
        *) echo python3-venv ;;
        esac
    fi
}

# How commands become root; fails where they cannot.
as_root() {
    [ -z "${PODLINK_NO_INSTALL:-}" ] && command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" = 0 ]; then
        root=
    else
        command -v sudo >/dev/null 2>&1 && sudo -n true >/dev/null 2>&1 || return 1
        root="sudo -n"
    fi
}

# Whether the kernel lets this user make what a cluster is made of.
may_make_namespaces() {
    all="--net --mount --uts --ipc --pid --fork --mount-proc"
    unshare --user --map-root-user $all true 2>/dev/null ||
        { [ "$(id -u)" = 0 ] && unshare $all true 2>/dev/null; }
}

available() {
    case $(apt-cache policy "$1" 2>/dev/null) in
    *"Candidate: (none)"* | '') return 1 ;;
    esac
}

# apt FROM TO ARGUMENTS: run apt-get; on a terminal its percentage, as FROM to TO, in a line of its own.
apt() {
    from=$1 to=$2
    shift 2
    status=0
    {
        $root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qy -o APT::Status-Fd=1 \
            -o DPkg::Lock::Timeout=300 "$@" 2>&1 </dev/null || echo "failed:$?"
    } | while IFS= read -r line; do
        case $line in
        failed:*) exit 1 ;;
        dlstatus:* | pmstatus:*)
            [ -t 2 ] || continue
            rest=${line#*:*:}
            percent=${rest%%[.:]*}
            printf '\r\033[2K[1/%s] %s %%' "$((steps + 1))" $((from + percent * (to - from) / 100)) >&2
            ;;
        *) echo "$line" >>"$log" ;;
        esac
    done || status=1
    return $status
}

said() { sed -n 's/^E: //p' "$log" | tail -n 1; }

# What of apt-get's own words says that nothing could be fetched.
offline() { grep -Eq 'Temporary failure resolving|Could not (resolve|connect)|Unable to connect|Network is unreachable' "$log"; }

install() {
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    trap 'exit 130' INT TERM HUP
    steps=$(plan_count)
    head="[1/$((steps + 1))] installing the packages $(echo $needed $welcome) (PODLINK_NO_INSTALL=1 only names them)"
    echo "$head" >&2
    apt 0 10 update || :
    wanted=$needed
    for package in $welcome; do
        ! available "$package" || wanted="$wanted $package"
    done
    for package in $needed; do
        available "$package" || {
            ! offline || die "the package archive cannot be reached: go online, or have an administrator run:" \
                "apt-get install $needed"
            die "no package archive of this system has $package (on Ubuntu it may be in universe:" \
                "add-apt-repository universe)"
        }
    done
    [ -z "$wanted" ] || apt 10 100 install --no-install-recommends $wanted || [ -z "$needed" ] || {
        cp "$log" "${TMPDIR:-/tmp}/podlink-apt.log" 2>/dev/null || :
        ! offline || die "the package archive cannot be reached: go online, then make $word again"
        die "apt-get install $wanted failed: $(said) (all it said: ${TMPDIR:-/tmp}/podlink-apt.log)"
    }
    [ ! -t 2 ] || printf '\r\033[2K' >&2
    done_steps=1
}

plan_count() {
    if [ -n "$python" ]; then
        "$python" scripts/environments.py --count "$word"
    else
        case $word in test | helm) echo 3 ;; *) echo 2 ;; esac
    fi
}

done_steps=0
find_python
case $word in
demo | test)
    may_make_namespaces || {
        [ -z "$python" ] || why=$("$python" -m local.permission 2>/dev/null) || why=
        die "${why:-the kernel lets this user make no namespaces: run it as root, in a container with --privileged}"
    }
    ;;
esac
lacks=$(sh scripts/needs.sh "$word")
needed=${lacks%%\?*}
welcome=
case $lacks in *\?*) welcome=${lacks#*\?} ;; esac
missing_python=$(lacking_python)
needed=$(echo $missing_python $needed)
if [ -n "$needed$welcome" ]; then
    may_be_had=
    for package in $welcome; do ! available "$package" || may_be_had="$may_be_had $package"; done
    if [ -n "$needed$may_be_had" ] && as_root; then
        install
        find_python
        missing_python=$(lacking_python)
        needed=$(echo $missing_python $(sh scripts/needs.sh "$word" | sed 's/?.*//'))
    fi
    # Where only the venv module lacks, environments.py can do without it.
    if [ -n "$needed" ] && { [ -z "$python" ] || [ "$needed" != "$missing_python" ]; }; then
        root="sudo "
        [ "$(id -u)" != 0 ] || root=
        die "needs packages that are not installed: ${root}apt-get install $needed"
    fi
    welcome=$(sh scripts/needs.sh "$word" | sed -n 's/.*?//p')
    [ -z "$welcome" ] || [ "$word" != test ] || echo "make $word goes without $welcome; the tests that need it are skipped" >&2
fi
exec "$python" scripts/environments.py "$word" "$done_steps"
