"""What reads bytes that others wrote, given any bytes: it raises its own error or nothing.

    python -m tests.fuzz entry --seconds 600        # coverage-guided, by Atheris (libFuzzer)
    make chaos                                      # all targets
    pytest tests/fuzz                               # a few thousand seeded mutations each

`targets.py` has the targets, each with inputs to begin from.
"""
