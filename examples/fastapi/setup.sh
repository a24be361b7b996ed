#!/bin/bash
# Makes a home for upright with a real stack in it: PostgreSQL, Redis, a FastAPI backend.
# Everything lives below DIR: data, secrets, unit files, and (unless told otherwise) the venv.
# Run it again: what is there stays; it only adds what is missing.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: setup.sh [--venv DIR] HOME_DIR
       setup.sh --venv DIR --only-venv

Makes HOME_DIR/units/{postgres,redis,backend}.toml and all they need. Needs PostgreSQL and
Redis on this machine (Debian: apt install postgresql-15 redis-server python3-venv).

  --venv DIR   use or make the Python venv there, instead of in HOME_DIR/venv
  --only-venv  make nothing else
USAGE
}

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

venv="" home="" only_venv=no
while [ $# -gt 0 ]; do
    case "$1" in
        --venv) [ $# -ge 2 ] || { usage >&2; exit 2; }; venv=$2; shift 2 ;;
        --only-venv) only_venv=yes; shift ;;
        -h|--help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) [ -z "$home" ] || { usage >&2; exit 2; }; home=$1; shift ;;
    esac
done
case "$only_venv:$venv:$home" in yes::*|yes:*:?*|no:*:) usage >&2; exit 2 ;; esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
umask 022
if [ "$only_venv" = no ]; then
    mkdir -p "$home"
    home=$(cd "$home" && pwd)
fi
case "$home" in *[\"\\]*) fail "a path with a quote or a backslash in it: $home" ;; esac
venv=${venv:-$home/venv}
mkdir -p "$(dirname "$venv")"
venv=$(cd "$(dirname "$venv")" && pwd)/$(basename "$venv")

find_postgres() {
    local dir
    for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
        [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && { echo "$dir"; return; }
    done
    dir=$(command -v initdb) && dirname "$dir" && return
    fail "no PostgreSQL server here; Debian: apt install postgresql-15"
}

# The system's own Python first: one below somebody's home cannot be executed by `nobody`.
find_python() {
    local python
    for python in ${PYTHON:-} /usr/bin/python3 python3; do
        "$python" -c 'import ensurepip, venv' 2>/dev/null && { command -v "$python"; return; }
    done
    fail "no Python 3 with venv here; Debian: apt install python3-venv"
}

venv_is_made() {
    [ "$(cat "$venv/.requirements" 2>/dev/null)" = "$wanted" ] && [ -x "$venv/bin/uvicorn" ]
}

make_venv() {
    local wanted
    wanted=$(sha256sum < "$here/requirements.txt")
    # A venv that is there may be another account's: it is used without writing beside it.
    if venv_is_made; then return; fi
    exec 9> "$venv.lock"    # two setups may share one venv
    flock 9
    if venv_is_made; then
        exec 9>&-
        return
    fi
    say "installing the backend's Python packages into $venv"
    "$(find_python)" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    printf '%s\n' "$wanted" > "$venv/.requirements"
    exec 9>&-
}

# An account of this name that can execute $2, else nothing (= the daemon's own account).
account() {
    [ "$(id -u)" = 0 ] || return 0
    id -u "$1" >/dev/null 2>&1 || return 0
    setpriv --reuid "$1" --regid "$(id -g "$1")" --clear-groups -- "$2" --version >/dev/null 2>&1 || return 0
    setpriv --reuid "$1" --regid "$(id -g "$1")" --clear-groups -- test -x "$home" || return 0
    echo "$1"
}

own() { # ACCOUNT DIR
    mkdir -p "$2"
    [ -z "$1" ] || chown "$1:$(id -gn "$1")" "$2"
    chmod 700 "$2"
}

user_line() { [ -z "$1" ] || printf 'user = "%s"\n' "$1"; }

if [ "$only_venv" = yes ]; then
    make_venv
    exit 0
fi
postgres_bin=$(find_postgres)
redis_bin=$(command -v redis-server) || fail "no redis-server here; Debian: apt install redis-server"
make_venv

postgres_user=$(account postgres "$postgres_bin/postgres")
[ -n "$postgres_user" ] || postgres_user=$(account nobody "$postgres_bin/postgres")
redis_user=$(account redis "$redis_bin")
[ -n "$redis_user" ] || redis_user=$(account nobody "$redis_bin")
backend_user=$(account nobody "$venv/bin/python")
if [ "$(id -u)" = 0 ]; then
    [ -n "$postgres_user" ] || fail "PostgreSQL refuses to run as root, and no other account can enter $home"
    [ -n "$backend_user" ] || say "note: \`nobody\` cannot reach $venv, so the backend runs as root here"
fi

# Three free ports, chosen once.
if [ ! -s "$home/ports" ]; then
    "$venv/bin/python" - > "$home/ports" <<'PYTHON'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in held))
PYTHON
fi
read -r postgres_port redis_port backend_port < "$home/ports"

# One password, chosen once: other accounts of this machine reach 127.0.0.1 too.
if [ ! -s "$home/secrets/password" ]; then
    mkdir -p "$home/secrets"
    chmod 700 "$home/secrets"
    ( umask 077; "$venv/bin/python" -c 'import secrets; print(secrets.token_hex(16))' > "$home/secrets/password" )
fi
password=$(cat "$home/secrets/password")

mkdir -p "$home/data" "$home/app" "$home/units"
install -m 644 "$here/app.py" "$home/app/app.py"
own "$redis_user" "$home/data/redis"
own "$backend_user" "$home/data/backend"
own "$postgres_user" "$home/data/postgres"

if [ ! -f "$home/data/postgres/PG_VERSION" ]; then
    say "initdb in $home/data/postgres"
    # initdb opens the password file as its own account, so it gets a copy for that moment.
    pwfile="$home/data/pwfile"
    trap 'rm -f "$pwfile"' EXIT
    install -m 600 ${postgres_user:+-o "$postgres_user"} "$home/secrets/password" "$pwfile"
    init=("$postgres_bin/initdb" -D "$home/data/postgres" -U app -E UTF8 --no-locale
          --auth=scram-sha-256 "--pwfile=$pwfile")
    if [ -n "$postgres_user" ]; then
        init=(setpriv --reuid "$postgres_user" --regid "$(id -g "$postgres_user")" --clear-groups -- "${init[@]}")
    fi
    ( cd / && "${init[@]}" ) > "$home/initdb.out" 2>&1 \
        || { cat "$home/initdb.out" >&2; fail "initdb did not succeed"; }
    rm -f "$pwfile"
    rm -f "$home/initdb.out"
fi

( umask 077; cat > "$home/secrets/backend.env" <<ENV
DATABASE_URL=postgresql://app:$password@127.0.0.1:$postgres_port/postgres?sslmode=disable
ENV
)

write_unit() { # NAME, text on stdin; a unit file that is there belongs to you
    [ -e "$home/units/$1.toml" ] || { cat > "$home/units/$1.toml"; say "wrote $home/units/$1.toml"; }
}

write_unit postgres <<UNIT
[unit]
description = "PostgreSQL, its data in this home"
drillable   = true                            # upright drill may hurt it

[service]
command = [
  "$postgres_bin/postgres", "-D", "$home/data/postgres",
  "-c", "listen_addresses=127.0.0.1", "-c", "port=$postgres_port",
  "-c", "unix_socket_directories=",           # TCP only: nothing of it outside this home
]
$(user_line "$postgres_user")

[readiness]
postgres = "127.0.0.1:$postgres_port"         # "starting up" is not ready yet
timeout  = "60s"                              # recovery after a crash takes its time

[health]
postgres  = "127.0.0.1:$postgres_port"        # a server that hangs answers nothing; "too many clients" is alive
interval  = "5s"
timeout   = "3s"
threshold = 3                                 # bad checks in a row: found within 3 × 5 s + 3 s

[restart]
policy = "always"
delays = ["5s", "10s", "15s"]                 # after the 1st, 2nd, 3rd failure in a row; the last repeats
reset_after = "60s"                           # this long ready, and the count begins anew

[alert]
after_failures = 4                            # when the list of delays is used up, somebody is told
repeat_every   = 4                            # and again at the 8th, the 12th, …

[stop]
signal  = "SIGINT"                            # the fast shutdown; SIGTERM would wait for clients
timeout = "30s"
UNIT

write_unit redis <<UNIT
[unit]
description = "Redis, counters only"
drillable   = true                            # upright drill may hurt it

[service]
command = [
  "$redis_bin", "--bind", "127.0.0.1", "--port", "$redis_port",
  "--dir", "$home/data/redis", "--save", "", "--appendonly", "no", "--daemonize", "no",
]
$(user_line "$redis_user")

[readiness]
redis   = "127.0.0.1:$redis_port"
timeout = "30s"

[health]
redis     = "127.0.0.1:$redis_port"           # PING; also one long command makes it miss the answer
interval  = "5s"
timeout   = "3s"
threshold = 3

[restart]
policy = "always"
delays = ["5s", "10s", "15s"]                 # after the 1st, 2nd, 3rd failure in a row; the last repeats
reset_after = "60s"                           # this long ready, and the count begins anew

[alert]
after_failures = 4                            # when the list of delays is used up, somebody is told
repeat_every   = 4                            # and again at the 8th, the 12th, …
UNIT

write_unit backend <<UNIT
[unit]
description = "Chat backend (FastAPI, uvicorn)"
drillable   = true                            # upright drill may hurt it
requires    = ["postgres", "redis"]           # starts when both are ready

[service]
command = [
  "$venv/bin/python", "-m", "uvicorn", "app:app",
  "--host", "127.0.0.1", "--port", "$backend_port",   # with its access log: drills look for their requests in it
]
$(user_line "$backend_user")
working_directory = "$home/app"
environment_files = ["$home/secrets/backend.env"]   # DATABASE_URL: a password belongs in no unit file

[service.environment]
REDIS_URL                = "redis://127.0.0.1:$redis_port/0"
JOURNAL                  = "$home/data/backend/journal.jsonl"
PYTHONUNBUFFERED         = "1"
PYTHONDONTWRITEBYTECODE  = "1"

[readiness]
http    = "http://127.0.0.1:$backend_port/api/system/health"   # can it do its work: 503 without PostgreSQL
timeout = "60s"

[health]
# Does the process itself answer? Not the address above: that one is bad while PostgreSQL is
# away, and a restart of the backend would not bring PostgreSQL back.
http      = "http://127.0.0.1:$backend_port/livez"
interval  = "5s"
timeout   = "3s"
threshold = 3

[dependency.postgres]
on_loss   = "degrade"                         # keep running: sessions wait in the journal
on_return = "resync"                          # then write them back

[dependency.redis]
on_loss   = "degrade"                         # the chat works without its count
on_return = "resync"

[resync]
# Acknowledged by 2xx: every session of the journal is in PostgreSQL. Anything else is tried again.
http    = "POST http://127.0.0.1:$backend_port/api/recovery/state_resync"
timeout = "30s"
delays  = ["5s", "10s", "15s"]                # when the last try fails too, somebody is told

[restart]
policy = "always"
delays = ["5s", "10s", "15s"]                 # after the 1st, 2nd, 3rd failure in a row; the last repeats
reset_after = "60s"                           # this long ready, and the count begins anew

[alert]
after_failures = 4                            # when the list of delays is used up, somebody is told
repeat_every   = 4                            # and again at the 8th, the 12th, …

[stop]
timeout = "10s"
UNIT

[ -e "$home/upright.toml" ] || cat > "$home/upright.toml" <<UNIT
[daemon]
shutdown_timeout = "60s"

[alert.file]                                  # who is to be told; README.md has the other kinds
kind = "file"
path = "$home/log/alerts.jsonl"
UNIT

say "ready: upright daemon --home $home   (backend: http://127.0.0.1:$backend_port)"
