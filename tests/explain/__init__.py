"""Plants causes of a miss in real JAX processes, and asks `hotstart cache explain` for them.

    python -m tests.explain                    every cause, singly and in pairs, with controls
    python -m tests.explain --seed 7 --pairs 40
    python -m tests.explain --only dtype shape+donation control

A trial has a store of its own. `planted.py` runs in it as a plain process, first as it is, then
with the causes planted; then the key that was compiled the second time is explained, from the
store alone. The kinds of the causes that are named must be exactly those that were planted. In a
control nothing is planted, and the second start must compile nothing.

To plant a cause of your own, without knowing how it is explained, add a `Plant` to `PLANTS` in
`plants.py`: the environment, the arguments or the `variant` of the program that it sets, and the
kind that it must be called. A variant is a word that `planted.py` looks for; add it there.
Two plants that set the same thing go into the same `group`, and are not planted together.
"""
