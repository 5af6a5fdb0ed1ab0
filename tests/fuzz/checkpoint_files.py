"""Files of small checkpoints, and damage to them: lies of headers, changed values, other kinds of files."""

import functools
import io
import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from higgs_native.audio_tokenizer.checkpoint import original_name
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model
from tests.fuzz import mutations
from tests.model.test_transformer import config


LANGUAGE_MODEL = config(num_hidden_layers=2, audio_dual_ffn_layers=(0, 1), audio_delay_token_id=270)
AUDIO_TOKENIZER = HiggsAudioTokenizerConfig(
    encoder_hidden_size=2,
    decoder_hidden_size=32,
    acoustic_hidden_size=8,
    codebook_size=32,
    codebook_dim=4,
    hubert=HubertConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=16,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4,
    ),
)
KINDS = ("original", "transformers", "audio tokenizer")
_DTYPES = (
    *("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I8", "U8", "I64", "BOOL", "C64"),
    *("F33", "", 5, None),
)
_NUMBERS = (-1, 0, 1, 2, 47, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**70, 0.5, "1", None)
# NaN, infinities and the largest values: in bfloat16 and in the upper half of float32.
_VALUES = (b"\xc0\x7f", b"\xc0\xff", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f", b"\x7f\xff", b"\x01\x00", b"\xff\xff")


@functools.cache
def files(kind: str) -> dict[str, bytes]:
    """Return the files of a checkpoint of one of `KINDS`, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "audio tokenizer":
            write_audio_tokenizer(folder, AUDIO_TOKENIZER)
        else:
            write_language_model(folder, LANGUAGE_MODEL, layout=kind)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def pickled(original: bool) -> bytes:
    """Return the audio tokenizer as `model.pth`, by its names in the original layout or in that of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        write_audio_tokenizer(folder, AUDIO_TOKENIZER)
        state = load_file(Path(folder) / "model.safetensors")
    if original:
        state = {original_name(name, AUDIO_TOKENIZER): tensor for name, tensor in state.items()}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def split(contents: bytes) -> dict[str, bytes]:
    """Return a safetensors file as two shards and their index."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole"
        path.write_bytes(contents)
        tensors = load_file(path)
    names = list(tensors)
    shards = {"first.safetensors": names[: len(names) // 2], "second.safetensors": names[len(names) // 2 :]}
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    written = {shard: save({name: tensors[name] for name in held}) for shard, held in shards.items()}
    return written | {"model.safetensors.index.json": json.dumps(index).encode()}


def damaged(contents: bytes, generator: random.Random) -> bytes:
    """Damage a safetensors file in one of several ways."""
    match generator.randrange(4):
        case 0:
            return mutations.mutated(contents, generator)
        case 1:
            return with_values(contents, generator)
        case _:
            return with_lies(contents, generator)


def with_values(contents: bytes, generator: random.Random) -> bytes:
    """Replace some values, most of them by others that are not finite."""
    changed = bytearray(contents)
    start = 8 + int.from_bytes(contents[:8], "little")
    for _ in range(generator.randint(1, 3)):
        at = start + 2 * generator.randrange((len(contents) - start) // 2)
        changed[at : at + 2] = generator.choice(_VALUES) if generator.random() < 0.9 else generator.randbytes(2)
    return bytes(changed)


def with_lies(contents: bytes, generator: random.Random) -> bytes:
    """Let the header of a safetensors file say something else."""
    size = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + size])
    for _ in range(generator.choice((1, 1, 2, 5))):
        lie(header, generator)
    text = json.dumps(header).encode(errors="surrogatepass")
    if generator.random() < 0.1:
        text = mutations.mutated(text, generator)
    if generator.random() < 0.1:
        size = generator.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1))
    else:
        size = len(text)
    return size.to_bytes(8, "little") + text + contents[8 + int.from_bytes(contents[:8], "little") :]


def lie(header: dict, generator: random.Random) -> None:
    """Change an entry of a header, in place."""
    name = generator.choice(list(header))
    entry = header[name]
    if not isinstance(entry, dict):
        return
    match generator.randrange(8):
        case 0:
            entry["dtype"] = generator.choice(_DTYPES)
        case 1 if isinstance(entry.get("shape"), list):
            entry["shape"] = [*entry["shape"], *generator.choices(_NUMBERS, k=generator.randrange(3))]
        case 2 if entry.get("shape"):
            entry["shape"][generator.randrange(len(entry["shape"]))] = generator.choice(_NUMBERS)
        case 3 if entry.get("data_offsets"):
            entry["data_offsets"][generator.randrange(2)] = generator.choice(_NUMBERS)
        case 4:
            header[mutations.text(generator)] = header.pop(name)
        case 5:
            del header[name]
        case 6:
            header[generator.choice(list(header))] = entry
        case _:
            header[name] = mutations.value(generator)
