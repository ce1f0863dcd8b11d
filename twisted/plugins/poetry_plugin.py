"""`twistd poetry` and `twist poetry`: loads the package only when asked for."""

from twisted.application.service import ServiceMaker

poetry = ServiceMaker("poetry", "poetry.daemon.tap", "Send a poem to whoever connects.", "poetry")
