"""A deterministic simulation of hosts, processes, links and stores, around the product's own code.

    scheduler.py    one thread runs at a time; a seed chooses which; virtual time
    primitives.py   what stands in for `threading`, `time` and thread pools on that scheduler
    seams.py        puts these in place of the names that the product's modules import
    world.py        hosts, processes, their clocks and pids; faults; crash points
    stores.py       a bucket and node directories, with delays and errors
    network.py      connections, with delays and cuts
    checks.py, owner_checks.py   the invariants
    nemesis.py      what goes wrong in a seed's run
    jax_like.py     one program as JAX asks for it
    solo.py, gang.py (agents.py, coordinator_host.py), drivers.py   what is simulated
    points.py       the crash points
    campaign.py     many seeds, and how often each crash point was reached

`python -m tests.simulation --seeds 1000` runs; `--seed 7 --trace` replays one seed.
"""
