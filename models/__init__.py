"""The nouns: typed values that every room shares. No I/O, no Prefect."""
