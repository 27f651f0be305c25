#!/bin/bash
# Builds the bundle, dist/noctule, and from it the Debian package: build.sh PACKAGE.deb
#
# What both consist of is in noctule.spec and debian/; Makefile says when they are built.
# The interpreter is this machine's own, and so are the C libraries that the package then
# depends on: it runs on this release of Debian and later ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
package=${1:?usage: build.sh PACKAGE.deb}
version=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' daemon/version.py)

tests/lab/setup.sh
python=python$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_python_version())')
tests/lab/setup.sh binutils dpkg-dev gcc "lib$python-dev"
.venv/bin/pip install --quiet --disable-pip-version-check -r packaging/requirements-build.txt
# A fixed seed orders what is compiled: equal sources make equal files.
PYTHONHASHSEED=0 .venv/bin/python -m PyInstaller --noconfirm --log-level ERROR \
    --distpath dist --workpath build packaging/noctule.spec

root=$(mktemp -d build/deb-XXXXXX)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
install -d "$root"/{DEBIAN,usr/{bin,lib/noctule,share/doc/noctule/licenses},lib/systemd/system}
install -d -m 700 "$root"/etc/noctule{,/keys}

cp -a dist/noctule "$root/usr/lib/noctule/package"
for name in noctuled noctulectl noctule-resolver; do
    ln -s "../lib/noctule/current/$name" "$root/usr/bin/$name"
done
install -m 644 -t "$root/lib/systemd/system" packaging/*.service

doc=$root/usr/share/doc/noctule
cp -r packaging/examples "$doc/examples"
install -m 644 packaging/debian/copyright "$doc/copyright"
for info in ".venv/lib/$python/site-packages"/*.dist-info; do
    name=$(basename "$info" .dist-info)
    # The packages of requirements.txt, and no others that happen to be in .venv.
    grep -qixF "${name/-/==}" <(sed 's/-/_/g; s/ .*//' packaging/requirements.txt) || continue
    mapfile -t licenses < <(find "$info" -iname 'licen[sc]e*' -type f)
    install -D -m 644 -t "$doc/licenses/$name" "${licenses[@]}"
done

# Which packages have the libraries that the executables and modules are linked with, and from
# which version on; but for the interpreter, which is in this one. It wants to see a source package.
mkdir "$root/debian"
printf 'Source: noctule\n\nPackage: noctule\nArchitecture: amd64\n' >"$root/debian/control"
mapfile -t linked < <(find "$root/usr/lib/noctule/package" -type f \( -perm -1 -o -name '*.so*' \))
libraries=$(cd "$root" && dpkg-shlibdeps --warnings=0 "-xlib$python" -O "${linked[@]/#$root\//}")
rm -r "$root/debian"
libraries=${libraries#shlibs:Depends=}

size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
for file in control postinst prerm postrm; do
    sed "s/@VERSION@/$version/; s/@SIZE@/$size/; s/@LIBRARIES@/$libraries/" \
        "packaging/debian/$file" >"$root/DEBIAN/$file"
done
chmod 755 "$root"/DEBIAN/p*
chmod -R u+rwX,go+rX,go-w "$root/usr" "$root/lib"

# zstd, because a small node unpacks it ten times faster than xz.
dpkg-deb --root-owner-group -Zzstd -z9 --build "$root" "$package.new" >/dev/null
mv "$package.new" "$package"
printf '%s: %s, installed %s\n' "$package" "$(du -h "$package" | cut -f1)" \
    "$(du -sh dist/noctule | cut -f1)"
