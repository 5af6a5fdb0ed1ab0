"""Words that no dictionary has."""

import torch
from safetensors.torch import save_file

from higgs_native.english.guess import PHONEMES, Guesser, decode_outputs, encode_letters


def test_letters_and_places():
    assert encode_letters("Café's") == [3, 1, 6, 27, 19]
    assert len(encode_letters("a" * 99)) == 40
    a, b = PHONEMES.index("k") + 1, PHONEMES.index("æ") + 1
    assert decode_outputs([0, a, a, 0, a, b, b, 0]) == "kkæ"
    assert decode_outputs([]) == decode_outputs([0, 0]) == ""


def test_a_guesser_that_is_written_and_read_guesses_alike(tmp_path):
    torch.manual_seed(0)
    model = Guesser(width=32, inner=64, layers=1).eval()
    save_file(model.half().state_dict(), tmp_path / "g.safetensors", {k: str(v) for k, v in model.shape.items()})
    read = Guesser.load(tmp_path / "g.safetensors")
    words = ["zorb", "xylograph", "a"]
    assert [read.guess(word) for word in words] == [model.float().guess(word) for word in words]
    assert read.guess("žluť") == read.guess("lu")
    assert read.guess("日本") == ""
    # What stands beside a word in a batch doesn't change it.
    ids = torch.tensor([[*encode_letters("zorb"), 0, 0], encode_letters("zorbed")])
    alone = read(ids[:1, :4], torch.tensor([0]))
    torch.testing.assert_close(read(ids, torch.tensor([0, 1]))[:1, :12], alone, rtol=1e-4, atol=1e-5)
