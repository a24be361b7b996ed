#!/bin/sh
# Installs one binary, its configuration directory and its systemd unit. Starts nothing.
set -eu

usage() {
    cat <<'USAGE'
usage: packaging/install.sh [BINARY]

Installs BINARY (default: target/release/upright) as PREFIX/bin/upright, with uprightd and
uprightctl beside it, makes /etc/upright/units, and installs upright.service. An existing
configuration is left as it is. Nothing is started or enabled.

Environment: PREFIX (default: /usr/local), SYSCONFDIR (/etc), UNITDIR (SYSCONFDIR/systemd/system),
DESTDIR (empty) goes before all of them, for packages.
USAGE
}

case "${1:-}" in
    -h|--help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$here/../target/release/upright}
prefix=${PREFIX:-/usr/local}
sysconfdir=${SYSCONFDIR:-/etc}
unitdir=${UNITDIR:-$sysconfdir/systemd/system}
root=${DESTDIR:-}

if [ ! -x "$binary" ]; then
    echo "install.sh: there is no $binary; run: cargo build --release" >&2
    exit 1
fi

# A running binary is replaced, not written over: copy beside it, then rename.
bin=$root$prefix/bin
install -d "$bin"
install -m 755 "$binary" "$bin/.upright.new"
mv -f "$bin/.upright.new" "$bin/upright"
ln -sf upright "$bin/uprightd"
ln -sf upright "$bin/uprightctl"

# Unit files say what runs as root: nobody else may write there.
install -d -m 755 "$root$sysconfdir/upright" "$root$sysconfdir/upright/units"

install -d "$root$unitdir"
sed "s|/usr/local/bin/upright|$prefix/bin/upright|" "$here/upright.service" > "$root$unitdir/upright.service"
chmod 644 "$root$unitdir/upright.service"

echo "installed $bin/upright and $root$unitdir/upright.service"
if [ -z "$root" ]; then
    echo "next: put unit files into $sysconfdir/upright/units, then"
    echo "      $prefix/bin/upright check && systemctl daemon-reload && systemctl enable --now upright"
fi
