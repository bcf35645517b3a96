# shellcheck shell=bash
# A Python with PyYAML, for scripts that start in the root of the repository.

# Prints the program. Fails if there is none.
find_python_with_yaml() {
    local program
    for program in python3 /usr/bin/python3; do
        if "$program" -c 'import yaml' 2>/dev/null; then
            printf '%s\n' "$program"
            return
        fi
    done
    return 1
}

# install_python_with_yaml PACKAGE...: installs PyYAML if no Python has it, and other Debian packages.
install_python_with_yaml() {
    local packages=("$@")
    find_python_with_yaml >/dev/null || packages+=(python3-yaml)
    ((${#packages[@]})) || return 0
    if ! command -v apt-get >/dev/null || ((EUID != 0)); then
        echo "these Debian packages are missing: ${packages[*]}: install them, or run this script as root on Debian" >&2
        return 1
    fi
    (
        export DEBIAN_FRONTEND=noninteractive
        scripts/retry apt-get update -qq
        scripts/retry apt-get install -y -qq --no-install-recommends "${packages[@]}"
    ) >&2
}
