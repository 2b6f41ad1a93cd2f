"""What `serving.build` gives a cluster, with releases that need no model; named by a Serve configuration."""

from ev_platform.serving.build import Arguments, behind_proxies
from ev_platform_tests.serving import fakes


def app(args: Arguments):
    return behind_proxies(args, fakes.load_named)
