"""Serve a poem as a daemon: twistd -ny poems.tac."""

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from poetry import PoetryServerFactory, PoetryService

application = Application("poems")
endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1:backlog=4096")
PoetryService([(endpoint, PoetryServerFactory(b"So brief."))]).setServiceParent(application)
