"""The faults, numbered as in the reliability plan: what each does, what must hold, how long a silence it may cause."""

from tests.chaos import faults_clients as clients
from tests.chaos import faults_consul as consul
from tests.chaos import faults_machine as machine
from tests.chaos import faults_network as network
from tests.chaos import faults_processes as processes
from tests.chaos.fault import CUT_S, KILLED_S, UNNOTICED_S, Fault, at_once
from tests.chaos.faults_processes import engine
from tests.chaos.script import Load

# Streams that outlast the restart of eight servers, some seconds each.
_ROLL = Load(shortest_tokens=200, longest_tokens=320, spread_s=15.0, deadline_s=180.0)
# Three times what the servers' places can take, for longer than a stream lasts.
_CROWD = Load(spread_s=10.0)

FAULTS = (
    Fault("0", "no fault", at_once(processes.nothing), UNNOTICED_S, servers=True),
    Fault("1", "server killed", at_once(processes.kill), KILLED_S, servers=True),
    Fault("2", "server frozen", at_once(processes.freeze), CUT_S, servers=True),
    Fault("3", "engine dead", at_once(engine(dead=True)), KILLED_S, servers=True),
    Fault("4", "engine stalls, health says OK", at_once(engine(stall=True)), CUT_S, servers=True),
    Fault("5", "a server is ten times slower", at_once(engine(slow_factor=10.0)), CUT_S, servers=True),
    Fault("6", "a server fails 30 % or all of its new requests", at_once(processes.failing), UNNOTICED_S, servers=True),
    Fault("7", "server drained", at_once(processes.drain), KILLED_S, servers=True),
    Fault("7-all", "all servers restarted in turn", at_once(processes.roll), KILLED_S, servers=True, load=_ROLL),
    Fault("8", "GOAWAY from a server", network.behind_proxy("server", network.goaway), KILLED_S, servers=True),
    Fault("8-router", "GOAWAY from a router", network.behind_proxy("router", network.goaway), KILLED_S, reroutes=True),
    Fault("9", "a server's stream reset", network.behind_proxy("server", network.reset), KILLED_S, servers=True),
    Fault(
        "9-router", "a client's stream reset", network.behind_proxy("router", network.reset), KILLED_S,
        reroutes=True,
    ),
    Fault("10", "all packets to a server dropped", at_once(network.drop), CUT_S, namespaces=True, servers=True),
    Fault(
        "11", "one-way partition", at_once(network.one_way), CUT_S,
        namespaces=True, reroutes=True, skewed=True, servers=True,
    ),
    Fault("12", "a whole zone with its Consul", at_once(processes.zone), KILLED_S, reroutes=True, servers=True),
    Fault(
        "13", "WAN partition", at_once(network.line(5.0, loss_ab=1, loss_ba=1)), CUT_S,
        namespaces=True, skewed=True, servers=True,
    ),
    Fault(
        "14", "100 ± 20 ms and 5 % loss",
        at_once(network.line(6.0, delay_ms=100, jitter_ms=20, loss_ab=0.05, loss_ba=0.05)), CUT_S,
        namespaces=True, skewed=True, servers=True,
    ),
    Fault("15", "server flapping", at_once(network.flap), CUT_S, namespaces=True, servers=True),
    Fault("16", "Consul leader killed", at_once(consul.leader), UNNOTICED_S),
    Fault("17", "Consul's quorum lost", at_once(consul.quorum), UNNOTICED_S),
    Fault("18", "agent killed and back empty", at_once(consul.agent), UNNOTICED_S),
    Fault("19", "Consul answers 500", at_once(consul.lie("error")), UNNOTICED_S),
    Fault("19-429", "Consul answers 429", at_once(consul.lie("limited")), UNNOTICED_S),
    Fault("19-hang", "Consul does not answer", at_once(consul.lie("hang")), UNNOTICED_S),
    Fault("20", "Consul answers []", at_once(consul.lie("empty")), UNNOTICED_S),
    Fault("21", "Consul's index starts over", at_once(consul.lie("reset")), UNNOTICED_S),
    Fault("22", "Consul tokens revoked", consul.revoked, UNNOTICED_S),
    Fault("23", "registration storm", at_once(consul.storm), UNNOTICED_S),
    Fault("24", "router killed", at_once(processes.router), KILLED_S, reroutes=True),
    Fault(
        "24-sdk", "router killed, clients with the SDK", at_once(processes.router), KILLED_S,
        reroutes=True, sdk=True,
    ),
    Fault("25", "second server dies during the resume", at_once(processes.second), KILLED_S, servers=True),
    Fault("26", "three times overload", clients.crowd, UNNOTICED_S, load=_CROWD, crowd=3.0),
    Fault("27", "server restarted on its port", at_once(processes.restart), KILLED_S, servers=True),
    Fault("28", "wall clocks jump by an hour", machine.clock, UNNOTICED_S, servers=True, needs=machine.why_no_faketime),
    Fault("29", "no file descriptors left", machine.descriptors, UNNOTICED_S, servers=True),
    Fault("29-disk", "no room for logs", machine.disk, UNNOTICED_S, servers=True, needs=machine.why_no_mount),
    Fault("31", "clients stop reading", clients.unread, UNNOTICED_S),
    Fault("32", "client vanishes", clients.vanishing, UNNOTICED_S),
    Fault("33", "router's loop blocked for 2 s", at_once(processes.block), CUT_S),
)  # fmt: skip
BY_NUMBER = {fault.number: fault for fault in FAULTS}
