import pytest

from vmd.providers.base import ProviderError
from vmd.providers.docker.subnets import SubnetPool


def test_each_subnet_is_handed_out_once_until_it_is_given_back() -> None:
    pool = SubnetPool("10.9.0.0/26")
    taken = [pool.take() for _ in range(4)]
    assert taken == ["10.9.0.0/28", "10.9.0.16/28", "10.9.0.32/28", "10.9.0.48/28"]
    with pytest.raises(ProviderError, match="give a larger pool"):
        pool.take()
    pool.give_back("10.9.0.16/28")
    assert pool.take() == "10.9.0.16/28"


def test_what_others_use_is_left_alone_whatever_its_size() -> None:
    pool = SubnetPool("10.9.0.0/25")
    pool.learn(["10.9.0.0/27", "10.9.0.52/30", "192.0.2.0/24", "fd00::/64", "10.9.0.64/28"])
    assert pool.take() == "10.9.0.32/28"
    assert pool.take() == "10.9.0.80/28"


def test_what_cannot_be_used_is_not_offered_again_whatever_the_engine_lists() -> None:
    pool = SubnetPool("10.9.0.0/26")
    pool.block(pool.take())
    pool.learn([])
    assert pool.take() == "10.9.0.16/28"


def test_a_look_at_the_engine_forgets_networks_that_are_gone_and_no_promise() -> None:
    pool = SubnetPool("10.9.0.0/26")
    promised, made = pool.take(), pool.take()
    pool.keep(made)
    pool.learn([])
    assert pool.take() == made
    assert promised not in (pool.take(), pool.take())
