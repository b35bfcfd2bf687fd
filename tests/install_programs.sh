#!/bin/sh
# Installs the programs the tests need besides Python: bubblewrap (bwrap), which confines trainers; in CI also PostgreSQL's
# server, which the tests of the director's store start in a folder of their own (elsewhere they skip with a reason).
#
# Installs only where it may without asking: as root, or with a sudo that needs no password. Elsewhere it says what is
# missing and goes on, since tests that need bubblewrap then skip with a reason. In CI (CI=true) a missing bubblewrap is
# a failure: there the confinement must be tested.
set -u

say() {
    printf '%s\n' "install_programs: $*" >&2
}

install_package() {
    package=$1
    if ! command -v apt-get >/dev/null 2>&1; then
        say "there is no apt-get here; install $package with your own package manager"
        return
    fi
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        say "neither root nor a sudo without password; run: sudo apt-get install $package"
        return
    fi
    say "$package is missing: RUNNING ${as_root:+$as_root }apt-get install $package ON THIS MACHINE"
    # The lists may be fresh already, and updating them fails where one of many sources is down.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" >&2 ||
        { $as_root apt-get update >&2; $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "$package" >&2; } ||
        say "apt-get could not install $package"
}

has_postgresql() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}

command -v bwrap >/dev/null 2>&1 || install_package bubblewrap
if [ "${CI:-}" = true ] && ! has_postgresql; then
    install_package postgresql
fi

if command -v bwrap >/dev/null 2>&1; then
    say "bubblewrap is here: $(bwrap --version)"
elif [ "${CI:-}" = true ]; then
    say "FAILED: bubblewrap is missing, and CI must test the confinement of trainers"
    exit 1
else
    say "WARNING: bubblewrap is missing; tests of the trainer's confinement will be skipped"
fi
