"""Inputs that a generator draws: a seeded, bounded number of them, the same ones in every run.

`HIGGS_NATIVE_FUZZ_CASES` is the number of cases of all files together, 1,000 by default; each file takes a share of
them, and the shares add up to 1. Many more by hand, with the summary of each file at the end of the output:

    HIGGS_NATIVE_FUZZ_CASES=100000 python -m pytest tests/fuzz -n 0

A case may be accepted, or refused by an error of this package in one printable line of at most 500 characters.
Everything else fails: another exception, more than 20 seconds of processor time, more than 4 GiB of memory, a
descriptor that stays open, or a result that is wrong. `HIGGS_NATIVE_FUZZ_ONLY=17` runs case 17 of each file alone. A
case that ends the process leaves its folder in pytest's temporary folder, with its number as the name, and `-s` shows
where it hung.
"""
