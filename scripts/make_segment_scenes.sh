#!/bin/sh
# Make synthetic scenes for semantic segmentation: cut-outs with alpha on photographs, with exact masks.
#
# usage: scripts/make_segment_scenes.sh OUT [--train N] [--val N] [--seed N]
#
# Default: 2,400 training and 360 validation scenes of 12 classes and background. OUT gets train/ and val/, each with
# images/, masks/ and classes.txt; preview.png; README.md with sources and licences; cutouts.tsv and scenes.tsv. What
# the script itself needs stays in OUT too: packages/ (unpacked) and .venv/. A second call downloads nothing again.
#
# Sources, all Debian packages (nothing of them is kept in this repository):
#   tuxpaint-stamps-default (GPL-2) openclipart-png (public domain)       cut-outs
#   tuxpaint-data mate-backgrounds lomiri-wallpapers-16.04                photographs; licences one by one in
#   plasma-workspace-wallpapers                                           OUT/README.md
# Needs a Debian system with apt-get, and python3 (3.11 or newer) with venv. Downloads 460 MB, takes 700 MB in OUT, and
# four minutes on one core.
set -eu
case ${1:-} in
"" | -*)
    sed -n '2,15p' "$0" | cut -c3-
    exit 2
    ;;
esac
out=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
for program in apt-get dpkg-deb python3; do
    command -v $program >/dev/null || {
        echo "$0: $program is not there; the sources are Debian packages" >&2
        exit 1
    }
done

mkdir -p "$out/packages"
if [ ! -e "$out/.venv/complete" ]; then
    python3 -m venv "$out/.venv"
    "$out/.venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 resvg-py==0.5.0
    touch "$out/.venv/complete"
fi
(
    cd "$out/packages"
    for package in tuxpaint-stamps-default openclipart-png tuxpaint-data mate-backgrounds lomiri-wallpapers-16.04 \
        plasma-workspace-wallpapers; do
        [ ! -d "$package" ] || continue
        rm -rf ./"${package}"_*.deb "$package.partial"
        apt-get download -q "$package"
        dpkg-deb -x ./"${package}"_*.deb "$package.partial"
        # shellcheck disable=SC2016  # dpkg-deb fills these in
        dpkg-deb -W --showformat='${Package}\t${Version}\n' ./"${package}"_*.deb >>versions.tsv
        rm ./"${package}"_*.deb
        mv "$package.partial" "$package"
    done
)
"$out/.venv/bin/python" -B "$here/make_segment_scenes.py" "$out/packages" "$out" "$@"
