"""Python's redis against a server: clients.py PORT PROTOCOL"""

import sys
import threading
import time

import redis

port, protocol = int(sys.argv[1]), int(sys.argv[2])


def connect(**options):
    return redis.Redis(port=port, protocol=protocol, decode_responses=True, socket_timeout=20, **options)


r = connect(client_name="tester")
r.flushall()

# Values of each type.
assert r.ping()
assert r.client_getname() == "tester"
assert r.set("a", "1", ex=100) and r.get("a") == "1" and 98 < r.ttl("a") <= 100
assert r.set("a", "2", nx=True) is None and r.set("a", "2", get=True) == "1"
assert r.incr("a") == 3 and r.decr("a", 2) == 1 and r.append("a", "0") == 2
assert r.mset({"b": "x", "c": "y"}) and r.mget("b", "c", "missing") == ["x", "y", None]
assert r.rpush("l", 1, 2, 3) == 3 and r.lrange("l", 0, -1) == ["1", "2", "3"] and r.lpop("l", 2) == ["1", "2"]
assert r.hset("h", mapping={"f": "1", "g": "2"}) == 2 and r.hgetall("h") == {"f": "1", "g": "2"}
assert r.sadd("s", "a", "b") == 2 and r.smembers("s") == {"a", "b"} and r.sismember("s", "a")
assert r.zadd("z", {"one": 1, "two": 2.5}) == 2 and r.zscore("z", "two") == 2.5
# The shape of pairs differs between the protocols and the versions of the library.
pairs = [tuple(pair) for pair in r.zrange("z", 0, -1, withscores=True)]
assert pairs == [("one", 1.0), ("two", 2.5)], pairs
assert r.type("z") == "zset" and r.exists("z", "h", "missing") == 2
try:
    r.lpush("a", 1)
    raise AssertionError("no error")
except redis.ResponseError as error:
    assert "WRONGTYPE" in str(error) or "wrong kind" in str(error), error

# Bytes, and a long value.
raw = redis.Redis(port=port, protocol=protocol)
value = bytes(range(256)) * 20_000
assert raw.set("long", value) and raw.get("long") == value

# Iteration with a cursor while keys come and go.
r.flushall()
for number in range(1000):
    r.set(f"key:{number}", number)
seen = []
for number, key in enumerate(r.scan_iter(match="key:*", count=7)):
    seen.append(key)
    r.set(f"other:{number}", 1)
    r.delete(f"other:{number - 10}")
assert len(seen) == 1000 and len(set(seen)) == 1000, (len(seen), len(set(seen)))
assert r.dbsize() == 1010

# A pipeline, and transactions: one after the other, and of many clients at once.
with r.pipeline(transaction=False) as pipe:
    for number in range(5000):
        pipe.set(f"p:{number}", number).get(f"p:{number}")
    results = pipe.execute()
assert results[1::2] == [str(number) for number in range(5000)]
with r.pipeline(transaction=True) as pipe:
    assert pipe.set("t", 1).incr("t").lpush("t", 1).get("t").execute(raise_on_error=False)[1::2] == [2, "2"]


def add():
    client = connect()
    for _ in range(100):
        with client.pipeline(transaction=True) as pipe:
            first, second = pipe.incr("sum").incr("sum").execute()
        assert second == first + 1, (first, second)


r.set("sum", 0)
threads = [threading.Thread(target=add) for _ in range(5)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert r.get("sum") == "1000", r.get("sum")

# Channels and patterns.
pubsub = connect().pubsub()
pubsub.subscribe("news", "other")
pubsub.psubscribe("n*")
kinds = [pubsub.get_message(timeout=10)["type"] for _ in range(3)]
assert kinds == ["subscribe", "subscribe", "psubscribe"], kinds
assert r.publish("news", "hello") == 2
assert r.publish("nobody", "hears") == 1
got = [pubsub.get_message(timeout=10) for _ in range(3)]
assert [(m["type"], m["channel"], m["data"]) for m in got] == [
    ("message", "news", "hello"), ("pmessage", "news", "hello"), ("pmessage", "nobody", "hears")], got
if protocol == 2:  # in RESP3 the library takes the letters of the reply for a message
    pubsub.ping()
    assert pubsub.get_message(timeout=10)["type"] == "pong"
pubsub.unsubscribe("other")
pubsub.punsubscribe()
assert [pubsub.get_message(timeout=10)["type"] for _ in range(2)] == ["unsubscribe", "punsubscribe"]
assert r.publish("other", "x") == 0 and r.publish("news", "x") == 1
pubsub.close()

# A client that waits for an element.
waiting = threading.Thread(target=lambda: results.append(connect().blpop(["empty", "queue"], timeout=20)))
results = []
waiting.start()
deadline = time.monotonic() + 20
while r.info("clients")["blocked_clients"] == 0 and time.monotonic() < deadline:
    time.sleep(0.005)
assert r.rpush("queue", "element") == 1
waiting.join()
assert [list(result) for result in results] == [["queue", "element"]], results
assert r.exists("queue") == 0 and r.blpop("queue", timeout=0.02) is None

# Clients.
other = connect(client_name="other")
other.ping()
listed = {client["name"]: client for client in r.client_list()}
assert listed["other"]["resp"] == str(protocol) and listed["other"]["lib-name"] == "redis-py", listed
assert r.client_kill_filter(_id=listed["other"]["id"]) == 1
assert "other" not in {client["name"] for client in r.client_list() if client["addr"] == listed["other"]["addr"]}
assert r.info()["role"] == "master" and r.config_get("save") == {"save": ""}
assert r.command_count() > 60 and r.command()["get"]["arity"] == 2

# A key expires without being asked for.
r.flushall()
r.set("soon", 1, px=30)
deadline = time.monotonic() + 20
while r.dbsize() and time.monotonic() < deadline:
    time.sleep(0.005)
assert r.dbsize() == 0
print("ok")
