"""Token ids of a page of `beit2 tokenizer demo` in headless Chromium; scripts/demo_test.sh calls it.

python scripts/demo_test.py CHROMIUM BEIT2 FOLDER

FOLDER/cases has tokenizers (NAME.weights.safetensors); the rest of FOLDER is for this script. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import http.server
import json
import random
import struct
import subprocess
import zlib
from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1180,900"
).split()

# Appended to the page: the images go in as files do, and what comes out is sent to the test. The page itself asks for nothing.
ASK = """
<script>
(async () => {
  const found = {};
  try {
    for (const [name, text] of Object.entries(%s)) {
      const result = await show(new Blob([decoded(text)]));
      if (!result || $("error").textContent) throw new Error(name + ": " + $("error").textContent);
      const sums = result.attention.map(all => all.reduce((a, b) => a + b) / result.heads / (result.ids.length + 1));
      if (sums.some(sum => Math.abs(sum - 1) > 1e-4)) throw new Error("attention sums to " + sums);
      const patches = Array.from($("codes").rows).filter(row => row.className).map(row => Number(row.cells[2].textContent));
      if (patches[0] !== result.ids.filter(id => id === state.code).length) throw new Error("the table counts " + patches);
      found[name] = result.ids;
    }
  } catch (error) { found.error = String(error); }
  await fetch("http://127.0.0.1:%d/", { method: "POST", mode: "no-cors", body: JSON.stringify(found) });
})();
</script>
"""


def png(width: int, height: int, seed: int) -> bytes:
    """An RGB image of smooth colour with noise."""
    draw, rows = random.Random(seed), []
    for y in range(height):
        pixels = bytes(
            min(max(int(128 + 90 * ((x * (c + 2) // 7 + y * (3 - c) // 5) % 3 - 1) + draw.gauss(0, 25)), 0), 255)
            for x in range(width)
            for c in range(3)
        )
        rows.append(b"\0" + pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


def answer(chromium: str, page: Path, profile: Path, server: http.server.HTTPServer, answers: list[bytes]) -> dict:
    """What the page sends."""
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", page.as_uri()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answers.clear()
        server.timeout = 120
        server.handle_request()
        assert answers, f"{page.name} has not answered in {server.timeout} s"
        return json.loads(answers[0])
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chromium")
    parser.add_argument("beit2")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder, answers = arguments.folder.resolve(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    images = {}
    # As the model sees it, larger, smaller, and with odd edges to cut off.
    for name, (width, height) in {"same": (32, 32), "wide": (75, 50), "tall": (41, 97), "small": (19, 23)}.items():
        images[name] = png(width, height, len(name))
        (folder / f"{name}.png").write_bytes(images[name])
    texts = json.dumps({name: base64.b64encode(data).decode() for name, data in images.items()})
    compared = 0
    for case in ("tokenizer", "tokenizer_imagenet", "tokenizer_dall_e"):
        weights, page = folder / "cases" / f"{case}.weights.safetensors", folder / f"{case}.html"
        subprocess.run([arguments.beit2, "tokenizer", "demo", weights, "--out", page, "--json"], check=True, capture_output=True)
        page.write_text(page.read_text() + ASK % (texts, server.server_port))
        found = answer(arguments.chromium, page, folder / "profile", server, answers)
        assert "error" not in found, found
        for name in images:
            out = folder / f"{case}_{name}.jsonl"
            command = [arguments.beit2, "tokenizer", "encode", folder / f"{name}.png", "--tokenizer", weights, "--out", out]
            subprocess.run(command, check=True, capture_output=True)
            expected = [id for row in json.loads(out.read_text())["ids"] for id in row]
            assert found[name] == expected, f"{case}, {name}: {found[name]}, expected {expected}"
            compared += len(expected)
    print(f"Chromium: {compared} token ids of 12 images are those of `beit2 tokenizer encode`")
    server.server_close()


if __name__ == "__main__":
    main()
