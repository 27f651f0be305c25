#!/bin/bash
# Builds the bundle, dist/noctule, and from it the Debian package: build.sh PACKAGE.deb
#
# noctule.spec and debian/ say what the two consist of; Makefile says when they are built. The
# interpreter is this machine's, and the package depends on the C libraries of this machine's
# Debian, in these versions or later ones. So it runs on this release of Debian and on later ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
package=${1:?usage: build.sh PACKAGE.deb}
version=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' daemon/version.py)

tests/lab/setup.sh
python=python$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_python_version())')
tests/lab/setup.sh binutils dpkg-dev gcc "lib$python-dev"
.venv/bin/pip install --quiet --disable-pip-version-check -r packaging/requirements-build.txt
# A fixed hash seed, because the order in sets depends on it and is written into compiled modules:
# so equal sources give equal files.
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
    # Only the packages of requirements.txt; .venv contains tools for tests and lint as well.
    grep -qixF "${name/-/==}" <(sed 's/-/_/g; s/ .*//' packaging/requirements.txt) || continue
    mapfile -t licenses < <(find "$info" -iname 'licen[sc]e*' -type f)
    install -D -m 644 -t "$doc/licenses/$name" "${licenses[@]}"
done

# Find the Debian packages, and their least versions, of the libraries that the executables and
# modules are linked with. The interpreter is left out, since this package contains it.
# dpkg-shlibdeps needs a debian/control of a source package, so there is one for the moment.
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

# Compress with zstd, because a small node unpacks it ten times faster than xz.
dpkg-deb --root-owner-group -Zzstd -z9 --build "$root" "$package.new" >/dev/null
mv "$package.new" "$package"
printf '%s: %s, installed %s\n' "$package" "$(du -h "$package" | cut -f1)" \
    "$(du -sh dist/noctule | cut -f1)"
