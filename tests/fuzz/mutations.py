"""Changes of files and values that break what reads them."""

import random


# Sizes and counts at the edges of their types.
_NUMBERS = (0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "anna",
        "Äñ",
        "你好",
        "🎉",
        "a\0b",
        "a\x1b[31mb\x1b[0m",
        "a\nb\r\nc",
        "\u202eabc",
        "\ufeff",
        "\u200b",
    ),
    *(
        "\ud800",
        "a" * 300,
        "a" * 5000,
        "../../etc/passwd",
        "/dev/zero",
        "~nobody/x",
        "~\0",
        "-i",
        "%s{}",
        "null",
        "profiles:",
    ),
)


def text(generator: random.Random) -> str:
    return "".join(generator.choices(TEXTS, k=generator.randint(1, 3)))


def mutated(contents: bytes, generator: random.Random) -> bytes:
    """Change a file at up to four places, more often near its beginning, where formats keep their headers."""
    changed = bytearray(contents)
    for _ in range(generator.choice((0, 1, 1, 2, 4))):
        size = len(changed)
        at = generator.randrange(min(size, generator.choice((16, 64, 256, size + 1))) + 1)
        match generator.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([generator.randrange(256)])
            case 1:
                width = generator.choice((2, 4, 8))
                number = generator.choice(_NUMBERS) % 256**width
                changed[at : at + width] = number.to_bytes(width, generator.choice(("little", "big")))
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + generator.randint(1, 64)]
            case 4:
                changed[at:at] = generator.randbytes(generator.randint(1, 64))
            case 5:
                changed[at:at] = changed[: generator.randint(1, 4096)]
            case _:
                length = generator.randint(1, 4096)
                changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


def value(generator: random.Random, depth: int = 3) -> object:
    """Draw a value as JSON holds it."""
    kind = generator.randrange(9 if depth else 7)
    if kind == 7:
        return [value(generator, depth - 1) for _ in range(generator.randrange(4))]
    if kind == 8:
        return {text(generator): value(generator, depth - 1) for _ in range(generator.randrange(4))}
    numbers = (generator.choice(_NUMBERS), -1, generator.uniform(-1e9, 1e9), 1e300, -0.0)
    return (None, True, False, text(generator), text(generator), generator.choice(numbers), generator.random())[kind]
