from higgs_native.prompt.pace import spoken_seconds


def test_spoken_seconds():
    assert 55 < spoken_seconds("It is a good day for a long walk. " * 31) < 80  # 279 words
    assert spoken_seconds("") == 0
    assert spoken_seconds("كَتَبَ") == spoken_seconds("كتب")
    assert spoken_seconds("1984") > spoken_seconds("four")
