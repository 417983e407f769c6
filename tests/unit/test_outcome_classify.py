from __future__ import annotations

from dataclasses import replace

import pytest

from hotstart.launcher.outcome import AgentLost, Outcome, WorkerExit, classify
from hotstart.launcher.preemption import PreemptionNotice

pytestmark = pytest.mark.unit


def ended(
    index: int,
    exit_code: int | None = 0,
    *,
    signal: int | None = None,
    at_s: float = 1.0,
    stopped: bool = False,
    cache_required: str = "",
) -> WorkerExit:
    host = "host-a" if index == 1 else "host-b"
    return WorkerExit(index, exit_code, signal, host, at_s, stopped, cache_required)


def lost(*processes: int, node_alive: bool, at_s: float = 1.0) -> AgentLost:
    return AgentLost(1, "host-a", node_alive, processes, at_s)


CASES = {
    "all_zero_is_done": (
        [ended(0), ended(1)],
        [],
        False,
        Outcome("done", "all 2 workers exited with code 0", None),
    ),
    "done_beats_an_interruption_that_came_too_late": (
        [ended(0), ended(1)],
        [],
        True,
        Outcome("done", "all 2 workers exited with code 0", None),
    ),
    "done_beats_an_agent_lost_after_its_workers_ended": (
        [ended(0), ended(1)],
        [lost(1, node_alive=False, at_s=2.0)],
        False,
        Outcome("done", "all 2 workers exited with code 0", None),
    ),
    "an_early_zero_ends_nothing": ([ended(0)], [], False, None),
    "nothing_seen_ends_nothing": ([], [], False, None),
    "only_stopped_exits_of_some_end_nothing": (
        [ended(0, None, signal=15, stopped=True)],
        [],
        False,
        None,
    ),
    "a_signal_is_named": (
        [ended(1, None, signal=9)],
        [],
        False,
        Outcome("failed", "process 1 on host-a was killed by SIGKILL", 1),
    ),
    "a_real_time_signal_is_numbered": (
        [ended(1, None, signal=40)],
        [],
        False,
        Outcome("failed", "process 1 on host-a was killed by signal 40", 1),
    ),
    "an_exit_code_is_named": (
        [ended(0, 7)],
        [],
        False,
        Outcome("failed", "process 0 on host-b exited with code 7", 0),
    ),
    "an_unknown_end_is_a_failure": (
        [ended(0, None)],
        [],
        False,
        Outcome("failed", "process 0 on host-b ended and its exit code is unknown", 0),
    ),
    "the_smallest_time_is_first_whatever_the_order": (
        [ended(0, 1, at_s=3.0), ended(1, None, signal=9, at_s=2.5)],
        [],
        False,
        Outcome("failed", "process 1 on host-a was killed by SIGKILL", 1),
    ),
    "a_stopped_worker_is_not_first": (
        [ended(0, None, signal=15, at_s=1.0, stopped=True), ended(1, 7, at_s=2.0)],
        [],
        False,
        Outcome("failed", "process 1 on host-a exited with code 7", 1),
    ),
    "a_dead_node_is_a_preemption_though_a_survivor_failed_first": (
        [ended(0, None, signal=6, at_s=1.0)],
        [lost(1, node_alive=False, at_s=5.0)],
        False,
        Outcome("preempted", "the node of host-a (process 1) went away", 1),
    ),
    "a_dead_node_counts_before_an_earlier_dead_agent": (
        [],
        [
            AgentLost(0, "host-b", True, (0,), 1.0),
            AgentLost(1, "host-a", False, (1,), 2.0),
        ],
        False,
        Outcome("preempted", "the node of host-a (process 1) went away", 1),
    ),
    "a_dead_node_names_its_first_unfinished_worker": (
        [ended(0)],
        [lost(0, 1, node_alive=False)],
        False,
        Outcome("preempted", "the node of host-a (processes 0, 1) went away", 1),
    ),
    "a_dead_agent_on_a_live_node_is_a_failure": (
        [],
        [lost(0, 1, node_alive=True)],
        False,
        Outcome("failed", "the agent of host-a (processes 0, 1) died; its node is alive", 0),
    ),
    "a_worker_that_failed_before_the_agent_died_is_first": (
        [ended(0, 7, at_s=1.0)],
        [lost(1, node_alive=True, at_s=2.0)],
        False,
        Outcome("failed", "process 0 on host-b exited with code 7", 0),
    ),
    "an_agent_that_died_before_the_worker_failed_is_first": (
        [ended(0, 7, at_s=3.0)],
        [lost(1, node_alive=True, at_s=2.0)],
        False,
        Outcome("failed", "the agent of host-a (process 1) died; its node is alive", 1),
    ),
    "an_agent_lost_before_it_had_workers_is_a_failure": (
        [],
        [lost(node_alive=True)],
        False,
        Outcome("failed", "the agent of host-a died; its node is alive", None),
    ),
    "an_agent_whose_workers_had_finished_ends_nothing": (
        [ended(1)],
        [lost(1, node_alive=False)],
        False,
        None,
    ),
    "an_interruption_beats_failures_and_lost_nodes": (
        [ended(0, 1)],
        [lost(1, node_alive=False)],
        True,
        Outcome("interrupted", "the launcher was told to stop", None),
    ),
    "exit_code_4_with_the_flag_is_cache_required": (
        [ended(1, 4, cache_required="no bucket")],
        [],
        False,
        Outcome("cache-required", "strict mode: process 1 on host-a: no bucket", 1),
    ),
    "exit_code_4_of_the_users_own_is_a_failure": (
        [ended(1, 4)],
        [],
        False,
        Outcome("failed", "process 1 on host-a exited with code 4", 1),
    ),
    "a_killed_worker_is_first_though_its_peer_was_seen_to_fail_before": (
        [ended(0, 1, at_s=1.0), ended(1, None, signal=9, at_s=1.3)],
        [],
        False,
        Outcome("failed", "process 1 on host-a was killed by SIGKILL", 1),
    ),
    "a_peer_that_aborts_is_no_cause": (
        [ended(0, 1, at_s=1.0), ended(1, None, signal=6, at_s=1.3)],
        [],
        False,
        Outcome("failed", "process 0 on host-b exited with code 1", 0),
    ),
    "a_worker_that_is_killed_much_later_is_not_first": (
        [ended(0, 1, at_s=1.0), ended(1, None, signal=9, at_s=1.6)],
        [],
        False,
        Outcome("failed", "process 0 on host-b exited with code 1", 0),
    ),
    "an_agent_that_is_missed_just_after_a_workers_error_is_first": (
        [ended(0, 1, at_s=1.0)],
        [lost(1, node_alive=True, at_s=1.2)],
        False,
        Outcome("failed", "the agent of host-a (process 1) died; its node is alive", 1),
    ),
    "sigterm_from_outside_is_a_preemption": (
        [ended(1, None, signal=15)],
        [],
        False,
        Outcome("preempted", "process 1 on host-a was killed by SIGTERM", 1),
    ),
    "zero_after_being_told_to_stop_is_not_done": (
        [ended(0, stopped=True), ended(1, stopped=True)],
        [],
        False,
        Outcome("interrupted", "workers were told to stop before they had finished", None),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_classify_what_was_seen_gives_the_outcome(case: str) -> None:
    exits, lost_agents, interrupted, expected = CASES[case]

    assert classify(2, exits, lost_agents, interrupted) == expected


DRAIN = PreemptionNotice("drain", "host-a", 30.0)
WORDS = "preemption notice for host-a: Ray drains its node, 30 s left"


def left(index: int) -> WorkerExit:
    return replace(ended(index), left=True)


NOTICED = {
    "all_left": (
        [left(0), left(1)],
        [],
        Outcome("preempted", f"{WORDS}; all 2 workers left", None),
    ),
    "one_has_left_and_the_other_may_still": ([left(0)], [], None),
    "one_left_and_one_was_ended": (
        [left(0), ended(1, 143, stopped=True)],
        [],
        Outcome("preempted", f"{WORDS}; process 0 left, the others were ended", None),
    ),
    "one_left_and_one_is_done": (
        [left(0), ended(1)],
        [],
        Outcome("preempted", f"{WORDS}; process 0 left, the others were ended", None),
    ),
    "all_done": (
        [ended(0), ended(1)],
        [],
        Outcome("done", "all 2 workers exited with code 0", None),
    ),
    "a_survivors_error": (
        [ended(0, None, signal=6)],
        [],
        Outcome("preempted", f"{WORDS}; process 0 on host-b was killed by SIGABRT", 0),
    ),
    "an_exit_code_that_asks_for_a_restart": (
        [ended(0, 75)],
        [],
        Outcome("preempted", f"{WORDS}; process 0 on host-b exited with code 75", 0),
    ),
    "a_lost_agent": (
        [],
        [lost(1, node_alive=True)],
        Outcome("preempted", f"{WORDS}; host-a (process 1) was lost", None),
    ),
    "a_dead_node": (
        [],
        [lost(1, node_alive=False)],
        Outcome("preempted", "the node of host-a (process 1) went away", 1),
    ),
    "nothing_yet": ([], [], None),
}


@pytest.mark.parametrize("case", NOTICED)
def test_classify_under_a_notice_gives_the_outcome(case: str) -> None:
    exits, lost_agents, expected = NOTICED[case]

    assert classify(2, exits, lost_agents, False, [DRAIN], [75]) == expected


def test_classify_workers_that_left_without_a_notice_are_preempted() -> None:
    outcome = classify(2, [left(0), left(1)], [], False)

    assert outcome == Outcome("preempted", "all 2 workers left", None)


def test_classify_exit_code_of_the_list_asks_for_a_restart_though_a_peers_end_came_first() -> None:
    exits = [ended(0, 1, at_s=1.0), ended(1, 75, at_s=1.1)]

    assert classify(2, exits, [], False, [], [3, 75]) == Outcome(
        "restart-asked",
        "process 1 on host-a exited with code 75, which asks for a restart (restarts.exit_codes)",
        1,
    )
