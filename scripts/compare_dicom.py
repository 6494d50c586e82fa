#!/usr/bin/env python3
"""Makes a folder of DICOM files with the pixels that they shall have, from the test files that pydicom ships.

    python3 -m venv venv && venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 pillow==13.0.0
    venv/bin/python scripts/compare_dicom.py dicom
    BEIT2_DICOM=$PWD/dicom cargo test --release -p beit2-data --features dicom --test decoding -- dicom

Grey values are pydicom's: apply_modality_lut, then the first table of apply_voi_lut or the first window (whose ramp is
apply_voi_lut's, in floating point and rounded once), else the range of the stored bits. Colours are pixel_array's, converted
to RGB; palettes are apply_color_lut's high bytes. Lossy JPEG may differ by the decoder.
"""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space

LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
# JPEG-LS, JPEG 2000 and its high-throughput kind.
UNREAD = tuple(f"1.2.840.10008.1.2.4.{kind}" for kind in (80, 81, 90, 91, 92, 93, 201, 202, 203))


def first(value):
    """The first of several values, as a number."""
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def expected(ds):
    """The range to ask for, and RGB pixels [H, W, 3]."""
    pixels = ds.pixel_array
    if int(getattr(ds, "NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    photometric, bits = ds.PhotometricInterpretation, ds.BitsStored
    if ds.SamplesPerPixel == 3:
        lossy = ds.file_meta.TransferSyntaxUID in LOSSY
        if photometric in ("YBR_FULL", "YBR_FULL_422") and not lossy:
            pixels = convert_color_space(pixels, photometric, "RGB")
        return "full", np.round(pixels.astype(float) * 255 / (2**bits - 1))
    if photometric == "PALETTE COLOR":
        colors = apply_color_lut(pixels, ds)
        return "auto", colors >> 8 if colors.dtype == np.uint16 else colors
    values = apply_modality_lut(pixels, ds).astype(float)
    rescaled = "RescaleSlope" in ds
    if "VOILUTSequence" in ds:
        rule, low, high = "auto", 0, 2 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        values = apply_voi_lut(apply_modality_lut(pixels, ds), ds).astype(float)
    elif "WindowCenter" in ds:
        center, width = first(ds.WindowCenter), first(ds.WindowWidth)
        rule, low, high = "auto", center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)
        rule = "full"
        if rescaled:
            low, high = (end * ds.RescaleSlope + ds.RescaleIntercept for end in (float(low), float(high)))
    grey = np.floor(np.clip((values - low) * 255 / (high - low), 0, 255) + 0.5)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    return rule, np.stack([grey] * 3, -1)


def main():
    """Writes the folder."""
    warnings.filterwarnings("ignore")
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    made = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.read_bytes()[128:132] != b"DICM":
            continue
        try:
            ds = pydicom.dcmread(path)
            uid = ds.file_meta.TransferSyntaxUID
            if "PixelData" not in ds or uid in UNREAD:
                continue
            rule, pixels = expected(ds)
        except Exception as error:  # pydicom refuses some of its own files on purpose
            print(f"left out: {path.name}: {str(error).splitlines()[0][:100]}")
            continue
        name = "_".join(path.relative_to(root).parts)
        shutil.copy(path, out / name)
        (out / f"{name}.rgb").write_bytes(np.ascontiguousarray(pixels.astype(np.uint8)).tobytes())
        tolerance = 3 if uid in LOSSY else 0
        (out / f"{name}.rule").write_text(f"{rule} {tolerance}\n")
        made += 1
    print(f"{made} files in {out}")


if __name__ == "__main__":
    main()
