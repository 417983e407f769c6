"""The rules of who resolves which key."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hotstart.launcher.claims import (
    STORE,
    Absent,
    Answer,
    Claims,
    Found,
    Granted,
    Held,
    Reply,
    Unstored,
)

pytestmark = pytest.mark.unit

KEY = "jit_step-0a"
D1, D2, D3 = (hashlib.sha256(name).digest() for name in (b"1", b"2", b"3"))
LEASE = Granted(absent=False, replaces=None)
TO_COMPILE = Granted(absent=True, replaces=None)


def found(*sources: int, digest: bytes = D1, in_store: bool = False) -> Found:
    return Found(digest, 10, sources, in_store)


def publish(claims: Claims, member: int, digest: bytes = D1) -> tuple[bytes, list[Reply]]:
    return claims.publish(member, KEY, digest, 10, in_node=True, in_store=False)


def ask(claims: Claims, member: int, **options: Any) -> Answer | None:
    """The answer to a claim that nobody else's reply comes with; None: it waits."""
    replies = claims.claim(member, 100 + member, KEY, **options)
    if not replies:
        return None
    (reply,) = replies
    assert (reply.member, reply.request) == (member, 100 + member)
    return reply.answer


def answers(replies: list[Reply]) -> dict[int, Answer]:
    return {reply.member: reply.answer for reply in replies}


@pytest.fixture
def claims() -> Claims:
    return Claims()


@pytest.fixture
def held(claims: Claims) -> Claims:
    """Member 0 has the lease; 1 and 2 wait."""
    assert ask(claims, 0) == LEASE
    assert ask(claims, 1) is None
    assert ask(claims, 2) is None
    return claims


@pytest.fixture
def published(claims: Claims) -> Claims:
    """Member 0 has published D1 from its node directory."""
    assert ask(claims, 0) == LEASE
    assert publish(claims, 0) == (D1, [])
    return claims


# One holder


def test_claim_first_is_granted_and_others_wait(claims: Claims) -> None:
    assert claims.claim(0, 7, KEY) == [Reply(0, 7, LEASE)]
    assert claims.claim(1, 8, KEY) == []
    assert claims.claim(1, 9, KEY) == []


def test_claim_other_key_does_not_wait(held: Claims) -> None:
    assert held.claim(1, 8, "jit_other-0b") == [Reply(1, 8, LEASE)]


def test_publish_answers_every_waiter_in_order(claims: Claims) -> None:
    claims.claim(0, 1, KEY)
    for member, request in ((2, 5), (1, 6), (2, 7)):
        assert claims.claim(member, request, KEY) == []
    assert publish(claims, 0) == (
        D1,
        [Reply(2, 5, found(0)), Reply(1, 6, found(0)), Reply(2, 7, found(0))],
    )
    assert publish(claims, 0) == (D1, [])


def test_claim_of_the_holder_waits_for_its_own_lease(claims: Claims) -> None:
    claims.claim(0, 1, KEY)
    assert claims.claim(0, 2, KEY) == []
    assert publish(claims, 0) == (D1, [Reply(0, 2, found(0))])


def test_release_grants_the_next_waiter_only(held: Claims) -> None:
    assert held.release(0, KEY) == [Reply(1, 101, LEASE)]
    assert held.release(1, KEY) == [Reply(2, 102, LEASE)]
    assert held.release(2, KEY) == []
    assert ask(held, 3) == LEASE


def test_release_of_the_holder_grants_its_other_thread(claims: Claims) -> None:
    claims.claim(0, 1, KEY)
    claims.claim(0, 2, KEY)
    assert claims.release(0, KEY) == [Reply(0, 2, LEASE)]


@pytest.mark.parametrize("call", ["release", "absent", "unstored"])
def test_settling_without_the_lease_has_no_effect(held: Claims, call: str) -> None:
    assert getattr(held, call)(1, KEY) == []
    assert getattr(held, call)(0, "jit_never-claimed") == []
    assert answers(publish(held, 0)[1]) == {1: found(0), 2: found(0)}


# Publication


def test_claim_published_is_found_at_once(published: Claims) -> None:
    assert ask(published, 1) == found(0)


def test_publish_from_the_store_only_has_no_sources(held: Claims) -> None:
    digest, replies = held.publish(0, KEY, D1, 10, in_node=False, in_store=True)
    assert (digest, answers(replies)) == (
        D1,
        {1: found(in_store=True), 2: found(in_store=True)},
    )


def test_publish_again_by_a_reader_makes_it_the_most_recent_source(published: Claims) -> None:
    assert publish(published, 1) == (D1, [])
    assert ask(published, 2) == found(1, 0)
    assert publish(published, 0) == (D1, [])
    assert ask(published, 2) == found(0, 1)


def test_publish_many_sources_names_the_last_eight(published: Claims) -> None:
    for member in range(1, 12):
        publish(published, member)
    assert ask(published, 20) == found(11, 10, 9, 8, 7, 6, 5, 4)


def test_publish_another_digest_returns_the_first_and_is_no_source(published: Claims) -> None:
    assert publish(published, 1, D2) == (D1, [])
    assert ask(published, 2) == found(0)


def test_publish_while_another_has_the_lease_is_not_the_gangs(held: Claims) -> None:
    assert publish(held, 5) == (D1, [])  # who compiled it alone goes on with it alone
    digest, replies = publish(held, 0, D2)
    assert (digest, answers(replies)) == (D2, {1: found(0, digest=D2), 2: found(0, digest=D2)})


def test_publish_never_claimed_is_found(claims: Claims) -> None:
    assert publish(claims, 4) == (D1, [])
    assert ask(claims, 1) == found(4)


def test_publish_neither_here_nor_in_the_store_is_unstored(held: Claims) -> None:
    digest, replies = held.publish(0, KEY, D1, 10, in_node=False, in_store=False)
    assert (digest, answers(replies)) == (D1, {1: Unstored(), 2: Unstored()})


def test_publish_neither_by_another_member_returns_the_published(published: Claims) -> None:
    assert published.publish(1, KEY, D2, 10, in_node=False, in_store=False) == (D1, [])


def test_stored_of_the_published_digest_adds_the_store(published: Claims) -> None:
    published.stored(0, KEY, D2)
    assert ask(published, 1) == found(0)
    published.stored(0, KEY, D1)
    assert ask(published, 2) == found(0, in_store=True)
    published.stored(0, "jit_never-claimed", D1)


# An entry that the claimer has already


def test_claim_with_an_entry_publishes_it(claims: Claims) -> None:
    assert ask(claims, 3, have=Held(D1, 10)) == found(3)
    assert ask(claims, 4) == found(3)


def test_claim_with_an_entry_waits_for_the_holder_who_may_run_another(held: Claims) -> None:
    assert held.claim(3, 103, KEY, have=Held(D1, 10)) == []
    _, replies = publish(held, 0, D2)
    assert answers(replies) == {n: found(0, digest=D2) for n in (1, 2, 3)}


def test_claim_with_the_published_entry_becomes_a_source(published: Claims) -> None:
    assert ask(published, 3, have=Held(D1, 10)) == found(3, 0)


def test_claim_with_another_entry_is_told_the_published(published: Claims) -> None:
    assert ask(published, 3, have=Held(D2, 10)) == found(0)
    assert ask(published, 4) == found(0)


def test_claim_with_an_entry_that_it_cannot_read_does_not_publish_it(claims: Claims) -> None:
    assert ask(claims, 3, have=Held(D1, 10), failed=(3,), failed_digest=D1) == LEASE


# Sources that cannot be read


def test_claim_failed_source_names_the_others(published: Claims) -> None:
    publish(published, 1)
    published.stored(0, KEY, D1)
    assert ask(published, 2, failed=(1,)) == found(0, in_store=True)
    assert ask(published, 2, failed=(1, 0)) == found(in_store=True)
    assert ask(published, 2, failed=(1, STORE)) == found(0)


def test_claim_failed_source_stays_one_for_others(published: Claims) -> None:
    publish(published, 1)
    assert ask(published, 2, failed=(1,)) == found(0)
    assert ask(published, 3) == found(1, 0)


def test_claim_all_sources_failed_is_granted_to_replace(published: Claims) -> None:
    assert ask(published, 1, failed=(0, STORE)) == Granted(absent=False, replaces=D1)
    assert ask(published, 2) is None
    assert ask(published, 3, failed=(0,)) is None
    digest, replies = publish(published, 1, D2)
    assert (digest, answers(replies)) == (
        D2,
        {2: found(1, digest=D2), 3: found(1, digest=D2)},
    )


def test_claim_failed_of_a_replaced_digest_reads_the_new_one(published: Claims) -> None:
    assert ask(published, 1, failed=(0,)) == Granted(absent=False, replaces=D1)
    publish(published, 1, D2)
    assert ask(published, 2, failed=(1, 0), failed_digest=D1) == found(1, digest=D2)


def test_replacement_by_the_same_digest_answers_those_who_failed(published: Claims) -> None:
    assert ask(published, 1, failed=(0,)) == Granted(absent=False, replaces=D1)
    assert ask(published, 2, failed=(0,)) is None
    digest, replies = publish(published, 1)
    assert (digest, answers(replies)) == (D1, {2: found(1, 0)})


def test_replacement_by_another_member_is_refused(published: Claims) -> None:
    ask(published, 1, failed=(0,))
    assert publish(published, 2, D3) == (D1, [])
    assert publish(published, 1, D2) == (D2, [])


def test_replacement_given_up_sends_each_waiter_its_way(published: Claims) -> None:
    ask(published, 1, failed=(0,))
    assert ask(published, 2) is None
    assert ask(published, 3, failed=(0,)) is None
    assert ask(published, 4, failed=(0,)) is None
    assert answers(published.release(1, KEY)) == {
        2: found(0),
        3: Granted(absent=False, replaces=D1),
    }
    assert answers(published.gone(3)) == {4: Granted(absent=False, replaces=D1)}


def test_replacement_unstored_frees_all_waiters(published: Claims) -> None:
    ask(published, 1, failed=(0,))
    assert ask(published, 2) is None
    assert ask(published, 3, failed=(0,)) is None
    assert answers(published.unstored(1, KEY)) == {2: found(0), 3: Unstored()}


def test_replacement_forgets_what_the_store_had(published: Claims) -> None:
    published.stored(0, KEY, D1)
    ask(published, 1, failed=(0, STORE))
    publish(published, 1, D2)
    assert ask(published, 2) == found(1, digest=D2)


def test_replacement_takes_what_the_source_has_once_given_up(published: Claims) -> None:
    ask(published, 1, failed=(0,))
    assert ask(published, 5, have=Held(D1, 10)) is None
    assert answers(published.release(1, KEY)) == {5: found(5, 0)}


def test_claim_to_read_all_sources_failed_is_absent(published: Claims) -> None:
    assert ask(published, 1, failed=(0,), may_compile=False) == Absent()
    assert ask(published, 2) == found(0)


# Nothing in the store


def test_absent_frees_readers_and_keeps_the_lease(claims: Claims) -> None:
    ask(claims, 0)
    assert ask(claims, 1, may_compile=False) is None
    assert ask(claims, 2) is None
    assert claims.absent(0, KEY) == [Reply(1, 101, Absent())]
    assert ask(claims, 3, may_compile=False) == Absent()
    assert answers(publish(claims, 0)[1]) == {2: found(0)}


def test_absent_from_a_reader_passes_the_lease_to_who_compiles(claims: Claims) -> None:
    assert ask(claims, 0, may_compile=False) == LEASE
    assert ask(claims, 1, may_compile=False) is None
    assert ask(claims, 2) is None
    assert ask(claims, 3) is None
    assert answers(claims.absent(0, KEY)) == {1: Absent(), 2: TO_COMPILE}
    assert claims.release(0, KEY) == []
    assert answers(publish(claims, 2)[1]) == {3: found(2)}


def test_absent_is_remembered(claims: Claims) -> None:
    ask(claims, 0, may_compile=False)
    assert claims.absent(0, KEY) == []
    assert ask(claims, 1, may_compile=False) == Absent()
    assert ask(claims, 2) == TO_COMPILE
    claims.release(2, KEY)
    assert ask(claims, 3) == TO_COMPILE


def test_publish_overrides_absent(claims: Claims) -> None:
    ask(claims, 0)
    claims.absent(0, KEY)
    publish(claims, 0)
    assert ask(claims, 1, may_compile=False) == found(0)


# Compiled and not stored


def test_unstored_frees_all_waiters_and_later_claims(held: Claims) -> None:
    assert held.unstored(0, KEY) == [Reply(1, 101, Unstored()), Reply(2, 102, Unstored())]
    assert ask(held, 3) == Unstored()
    assert ask(held, 0) == Unstored()
    assert ask(held, 4, may_compile=False) == Unstored()


def test_unstored_is_overridden_by_a_publication(held: Claims) -> None:
    held.unstored(0, KEY)
    assert publish(held, 1) == (D1, [])
    assert ask(held, 2) == found(1)


def test_unstored_is_forgotten_in_the_next_attempt(claims: Claims) -> None:
    claims.begin(0, 1)
    claims.begin(1, 1)
    ask(claims, 0)
    claims.unstored(0, KEY)
    assert claims.begin(0, 1) == []
    assert ask(claims, 1) == Unstored()
    assert claims.begin(1, 2) == []
    assert ask(claims, 1) == LEASE
    assert ask(claims, 0) is None


def test_publish_forgets_for_good_that_it_was_absent_or_unstored(claims: Claims) -> None:
    ask(claims, 0)
    claims.absent(0, KEY)
    claims.unstored(0, KEY)
    publish(claims, 1)
    claims.gone(1)
    assert ask(claims, 2) == LEASE


# Members that begin anew or are lost


def test_begin_voids_leases_and_claims_of_that_member(held: Claims) -> None:
    assert held.begin(1, 2) == []
    assert held.begin(0, 2) == [Reply(2, 102, LEASE)]
    assert held.release(0, KEY) == []
    assert answers(publish(held, 2)[1]) == {}


def test_begin_voids_the_claim_of_a_member_that_waits_for_itself(claims: Claims) -> None:
    claims.claim(0, 1, KEY)
    claims.claim(0, 2, KEY)
    claims.claim(1, 3, KEY)
    assert claims.begin(0, 2) == [Reply(1, 3, LEASE)]


def test_begin_keeps_the_sources(published: Claims) -> None:
    published.begin(0, 2)
    assert ask(published, 1) == found(0)


def test_gone_holder_passes_the_lease_on(held: Claims) -> None:
    assert held.gone(1) == []
    assert held.gone(0) == [Reply(2, 102, LEASE)]
    assert held.gone(2) == []
    assert ask(held, 3) == LEASE


def test_gone_holder_after_absent_leaves_what_it_found(held: Claims) -> None:
    held.absent(0, KEY)
    assert held.gone(0) == [Reply(1, 101, TO_COMPILE)]


def test_gone_source_is_not_named(published: Claims) -> None:
    publish(published, 1)
    assert published.gone(1) == []
    assert ask(published, 2) == found(0)


def test_gone_last_source_leaves_the_store(published: Claims) -> None:
    published.stored(0, KEY, D1)
    published.gone(0)
    assert ask(published, 1) == found(in_store=True)


def test_gone_last_source_of_what_is_not_stored_forgets_it(published: Claims) -> None:
    published.gone(0)
    assert ask(published, 1) == LEASE
    assert publish(published, 1, D2) == (D2, [])


def test_gone_last_source_while_it_is_replaced_forgets_it(published: Claims) -> None:
    ask(published, 1, failed=(0,))
    assert ask(published, 2) is None
    assert published.gone(0) == []
    assert answers(published.release(1, KEY)) == {2: LEASE}


# Memory


def test_claims_beyond_max_keys_forget_the_oldest_settled_key() -> None:
    claims = Claims(max_keys=3)
    claims.claim(0, 1, "held")
    for key in ("a", "b", "c"):
        claims.publish(0, key, D1, 10, in_node=True, in_store=False)
    assert claims.claim(1, 2, "held") == []
    assert claims.claim(1, 3, "c") == [Reply(1, 3, found(0))]
    assert claims.claim(1, 4, "a") == [Reply(1, 4, LEASE)]


# Any order of events

MEMBERS = st.integers(0, 3)
KEYS = st.sampled_from(["a", "b"])
DIGESTS = st.sampled_from([D1, D2, D3])
FAILED = st.sets(st.sampled_from([STORE, 0, 1, 2, 3]))


class AnyOrder(RuleBasedStateMachine):
    """Members do anything at any time; the model keeps who waits and what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = Claims()
        self.requests = 0
        self.open: dict[int, tuple[int, str, bool]] = {}  # request -> member, key, may_compile
        self.ever: dict[str, set[bytes]] = {"a": set(), "b": set()}

    def holders(self) -> dict[str, tuple[int, int]]:
        """Member and request of each lease."""
        states = self.claims._keys.items()
        return {k: (s.holder.member, s.holder.request) for k, s in states if s.holder is not None}

    def holds(self, member: int, key: str) -> bool:
        return self.holders().get(key, (None, 0))[0] == member

    def published(self, key: str) -> bytes | None:
        state = self.claims._keys.get(key)
        return None if state is None else state.digest

    def waiting(self, key: str) -> list[int]:
        return [request for request, (_, k, _) in self.open.items() if k == key]

    def take(
        self, before: dict[str, tuple[int, int]], ended: set[str], replies: list[Reply]
    ) -> None:
        """Check the replies of a step that may have ended the leases of the keys `ended`."""
        after = self.holders()
        granted: dict[str, tuple[int, int]] = {}
        for reply in replies:
            member, key, may_compile = self.open.pop(reply.request)  # it was asked, and once
            assert member == reply.member
            match reply.answer:
                case Granted(_, replaces):
                    assert key not in granted
                    granted[key] = (member, reply.request)
                    assert replaces == self.published(key)
                case Found(digest, _, sources, in_store):
                    assert digest == self.published(key)
                    assert digest in self.ever[key]
                    assert sources or in_store
                case Absent():
                    assert not may_compile
        for key, holder in before.items():
            if key not in ended:
                assert after[key] == holder
        for key, holder in after.items():
            assert holder == granted.get(key, before.get(key))
        for key, holder in granted.items():
            assert after[key] == holder
            assert key not in before or key in ended

    @rule(
        member=MEMBERS,
        key=KEYS,
        have=st.none() | DIGESTS,
        failed=st.just(set()) | FAILED,
        failed_digest=st.none() | DIGESTS,
        may_compile=st.booleans(),
    )
    def claim(
        self,
        member: int,
        key: str,
        have: bytes | None,
        failed: set[int],
        failed_digest: bytes | None,
        may_compile: bool,
    ) -> None:
        before = self.holders()
        self.requests += 1
        self.open[self.requests] = (member, key, may_compile)
        ended: set[str] = set()
        if have is not None:
            self.ever[key].add(have)
        held = None if have is None else Held(have, 10)
        options = {"failed": failed, "failed_digest": failed_digest, "may_compile": may_compile}
        self.take(
            before, ended, self.claims.claim(member, self.requests, key, have=held, **options)
        )

    @rule(member=MEMBERS, key=KEYS, digest=DIGESTS, in_node=st.booleans(), in_store=st.booleans())
    def publish(self, member: int, key: str, digest: bytes, in_node: bool, in_store: bool) -> None:
        before, was, waiting = self.holders(), self.published(key), self.waiting(key)
        takes = self.holds(member, key) or (was is None and key not in before)
        ended = {key} if takes else set()
        counts, replies = self.claims.publish(
            member, key, digest, 10, in_node=in_node, in_store=in_store
        )
        assert counts == (digest if takes else was or digest)
        if takes and (in_node or in_store):
            self.ever[key].add(counts)
            assert [reply.request for reply in replies] == waiting
            assert all(isinstance(reply.answer, Found) for reply in replies)
        self.take(before, ended, replies)

    @rule(member=MEMBERS, key=KEYS)
    def absent(self, member: int, key: str) -> None:
        before = self.holders()
        ended = {key} if self.holds(member, key) else set()
        compiles = ended and self.claims._keys[key].holder.may_compile
        self.take(before, set() if compiles else ended, self.claims.absent(member, key))

    @rule(member=MEMBERS, key=KEYS)
    def unstored(self, member: int, key: str) -> None:
        before = self.holders()
        ended = {key} if self.holds(member, key) else set()
        self.take(before, ended, self.claims.unstored(member, key))

    @rule(member=MEMBERS, key=KEYS)
    def release(self, member: int, key: str) -> None:
        before = self.holders()
        ended = {key} if self.holds(member, key) else set()
        self.take(before, ended, self.claims.release(member, key))

    @rule(member=MEMBERS, key=KEYS, digest=DIGESTS)
    def stored(self, member: int, key: str, digest: bytes) -> None:
        self.claims.stored(member, key, digest)

    @rule(member=MEMBERS, attempt=st.integers(1, 3))
    def begin(self, member: int, attempt: int) -> None:
        before, ended = self.holders(), self.void(member)
        self.take(before, ended, self.claims.begin(member, attempt))

    @rule(member=MEMBERS)
    def gone(self, member: int) -> None:
        before, ended = self.holders(), self.void(member)
        self.take(before, ended, self.claims.gone(member))
        for state in self.claims._keys.values():
            assert member not in state.sources

    def void(self, member: int) -> set[str]:
        self.open = {r: asked for r, asked in self.open.items() if asked[0] != member}
        return {key for key in self.claims._keys if self.holds(member, key)}

    @invariant()
    def waiting_claims_have_a_holder(self) -> None:
        for key, state in self.claims._keys.items():
            assert [claim.request for claim in state.waiting] == self.waiting(key)
            assert state.holder is not None or not state.waiting
            assert state.digest is not None or not (state.sources or state.in_store)
            assert (key in self.claims._unsettled) == (state.holder is not None)

    def teardown(self) -> None:
        """Once all holders have ended, one after the other, nobody waits."""
        while holders := self.holders():
            for key, (member, _) in holders.items():
                self.release(member, key)
        assert self.open == {}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)


def test_absent_is_forgotten_when_a_new_attempt_begins() -> None:
    claims = Claims()
    claims.begin(0, 1)
    claims.claim(0, 1, "k")
    claims.absent(0, "k")
    claims.begin(0, 2)
    assert claims.claim(0, 2, "k") == [Reply(0, 2, Granted(absent=False, replaces=None))]
