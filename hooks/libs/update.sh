#!/bin/sh
# Makes libs.zip out of the packages as npm has them, byte by byte. Needs npm,
# zip and the network; run it to take a newer version, then run the tests.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for p in moment@2.31.0 moment-timezone@0.6.6 crypto-js@4.2.0; do
  name=${p%@*}
  (cd "$work" && npm pack --silent "$p" >/dev/null && mkdir "$name" && tar xzf "$name"-[0-9]*.tgz -C "$name" --strip-components=1)
done
out=$work/out
mkdir -p "$out/moment" "$out/moment-timezone" "$out/crypto-js"
cp "$work/moment/min/moment.min.js" "$out/moment/moment.js"
cp -r "$work/moment/locale" "$out/moment/locale"
cp "$work/moment-timezone/moment-timezone.js" "$out/moment-timezone/"
cp "$work/moment-timezone/data/packed/latest.json" "$out/moment-timezone/"
cp "$work"/crypto-js/*.js "$out/crypto-js/"
rm "$out/crypto-js/index.js" "$out/crypto-js/crypto-js.js"
for name in moment moment-timezone crypto-js; do cp "$work/$name/LICENSE" "$work/$name/package.json" "$out/$name/"; done
find "$out" -exec touch -d 2000-01-01 {} +
rm -f libs.zip
here=$(pwd)
(cd "$out" && find . -type f | LC_ALL=C sort | zip -X -9 -q "$here/libs.zip" -@)
