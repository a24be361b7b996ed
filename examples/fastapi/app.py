"""A chat backend as small as one can be and still keep its promises.

A chat becomes a row of the session log in PostgreSQL and a count in Redis. The answer says
where the session is: 200 = in PostgreSQL, 202 = in the local journal (PostgreSQL is away),
503 = nowhere, send it again. Sent again with the same id, it is stored once. What waits in the
journal is written back when the backend starts, and when it is asked for a resync.

Settings come from the environment: DATABASE_URL, REDIS_URL, JOURNAL (a file).
"""

import asyncio
import contextlib
import json
import logging
import os
import uuid
from pathlib import Path

import asyncpg
import redis.asyncio as redis
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field

log = logging.getLogger("uvicorn.error")

# What "away" looks like from here: refused, reset, timed out, or PostgreSQL starting up,
# shutting down or out of connections.
AWAY = (OSError, asyncio.TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError,
        asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
        asyncpg.TooManyConnectionsError,
        asyncpg.InternalClientError)  # what asyncpg says of a connection that is cut in mid-sentence

# Below the 3 s that a health check waits by default, so that it hears "postgres is down"
# instead of nothing.
TIMEOUT_S = 1.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS session_log (
    id      uuid PRIMARY KEY,
    "user"  text NOT NULL,
    message text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
)"""

INSERT = """
INSERT INTO session_log (id, "user", message)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[]) ON CONFLICT (id) DO NOTHING"""

# Sessions a statement: each has to be done within TIMEOUT_S.
BATCH = 500

# Largest journal. Beyond it a session is refused (503) instead of accepted: a full disk would
# take PostgreSQL's files with it.
JOURNAL_BYTES_MAX = 64 * 1024 * 1024


class Chat(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    user: str = Field("", max_length=200)
    message: str = Field(max_length=20_000)


class Database:
    """One pool, made when it is first needed: the backend also starts while PostgreSQL is away."""

    def __init__(self, url: str):
        self.url, self.pool, self.opening = url, None, asyncio.Lock()

    async def open(self) -> asyncpg.Pool:
        async with self.opening:
            if self.pool is None:
                pool = await asyncpg.create_pool(self.url, min_size=0, max_size=10, timeout=TIMEOUT_S,
                                                 command_timeout=TIMEOUT_S)
                try:
                    await pool.execute(SCHEMA)
                except BaseException:
                    pool.terminate()
                    raise
                self.pool = pool
        return self.pool

    async def execute(self, sql: str, *values):
        pool = await self.open()
        async with pool.acquire(timeout=TIMEOUT_S) as connection:
            return await connection.execute(sql, *values)

    async def value(self, sql: str):
        pool = await self.open()
        async with pool.acquire(timeout=TIMEOUT_S) as connection:
            return await connection.fetchval(sql)

    async def store(self, chats: list[Chat]) -> int:
        """How many rows are new; the others were there. All of them are when this returns."""
        columns = [chat.id for chat in chats], [chat.user for chat in chats], [chat.message for chat in chats]
        return int((await self.execute(INSERT, *columns)).removeprefix("INSERT 0 "))

    def close(self):
        if self.pool is not None:
            self.pool.terminate()


class Journal:
    """Append-only, and on the disk before anybody is told so."""

    def __init__(self, path: Path):
        self.path, self.lock = path, asyncio.Lock()
        self.cleared = 0  # how often all of it was written back
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        # A last line without its newline was being written when the process died, so nobody
        # was told that it is kept.
        text = path.read_bytes()
        os.ftruncate(self.fd, text.rfind(b"\n") + 1)
        os.fsync(self.fd)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def append(self, chat: Chat):
        line = chat.model_dump_json().encode() + b"\n"
        before = os.fstat(self.fd).st_size
        if before + len(line) > JOURNAL_BYTES_MAX:
            raise OSError("the journal is full")
        try:
            written = os.write(self.fd, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
            os.fdatasync(self.fd)
        except OSError:
            os.ftruncate(self.fd, before)  # half a line would spoil the next one
            raise

    def sessions(self) -> list[Chat]:
        return [Chat.model_validate(json.loads(line)) for line in self.path.read_bytes().splitlines()]

    def clear(self):
        os.ftruncate(self.fd, 0)
        os.fsync(self.fd)
        self.cleared += 1


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.database = Database(os.environ["DATABASE_URL"])
    app.state.cache = redis.from_url(os.environ["REDIS_URL"], socket_timeout=TIMEOUT_S,
                                     socket_connect_timeout=TIMEOUT_S)
    app.state.journal = Journal(Path(os.environ["JOURNAL"]))
    try:
        done = await write_back()  # of a run that died before its resync
        log.info("the journal is in step: %(written)d sessions written back, %(known)d known", done)
    except AWAY as error:
        log.warning("the journal waits for a resync, %s", why(error))
    yield
    app.state.database.close()
    await app.state.cache.aclose()


app = FastAPI(title="Chat backend", lifespan=lifespan)


async def write_back() -> dict:
    """Empties the journal into PostgreSQL. The lock keeps new sessions out of it meanwhile, so
    that clearing it forgets nothing; the ids keep a row that is there already from being doubled."""
    async with app.state.journal.lock:
        sessions = app.state.journal.sessions()
        written = 0
        for start in range(0, len(sessions), BATCH):
            written += await app.state.database.store(sessions[start : start + BATCH])
        app.state.journal.clear()
    return {"written": written, "known": len(sessions) - written, "left": 0}


def why(error: BaseException) -> str:
    return f"down: {str(error) or type(error).__name__}"


@app.get("/livez")
async def livez():
    return {"status": "alive"}


@app.get("/api/system/health")
async def health(response: Response):
    async def postgres():
        try:
            await app.state.database.value("SELECT 1")
            return "up"
        except AWAY as error:
            return why(error)

    async def cache():
        try:
            await app.state.cache.ping()
            return "up"
        except (redis.RedisError, OSError) as error:
            return why(error)

    words = dict(zip(("postgres", "redis"), await asyncio.gather(postgres(), cache())))
    fine = all(word == "up" for word in words.values())
    response.status_code = 200 if fine else 503
    return {"status": "ok" if fine else "degraded"} | words


@app.post("/api/chat")
async def chat(chat: Chat, response: Response):
    cleared = app.state.journal.cleared
    try:
        await app.state.database.store([chat])
        stored = "postgres"
    except AWAY as error:
        stored = await keep(chat, error, cleared)
    if stored == "journal":
        response.status_code = 202
    with contextlib.suppress(redis.RedisError, OSError):  # a count is a convenience
        await app.state.cache.incr("chats")
    return {"id": str(chat.id), "stored": stored}


async def keep(chat: Chat, error: BaseException, cleared: int) -> str:
    """PostgreSQL is away: into the journal. Unless a resync has passed since then: PostgreSQL is
    back, and what came into the journal now would lie there until the next outage."""
    async with app.state.journal.lock:
        if app.state.journal.cleared != cleared:
            try:
                await app.state.database.store([chat])
                return "postgres"
            except AWAY as again:
                error = again
        try:
            app.state.journal.append(chat)
        except OSError as worse:
            raise HTTPException(503, f"the session is stored nowhere: {error}; {worse}") from worse
    log.warning("session %s goes to the journal: %s", chat.id, why(error))
    return "journal"


@app.post("/api/recovery/state_resync")
async def state_resync():
    """200 only when all is in PostgreSQL; otherwise the journal is as it was."""
    try:
        done = await write_back()
    except AWAY as error:
        raise HTTPException(503, f"the journal waits on, {why(error)}") from error
    log.info("state is in step again: %(written)d sessions written back, %(known)d known", done)
    return done


@app.get("/api/sessions")
async def sessions():
    async with app.state.journal.lock:
        waiting = len(app.state.journal.sessions())
    try:
        count = await app.state.database.value("SELECT count(*) FROM session_log")
    except AWAY as error:
        raise HTTPException(503, why(error)) from error
    return {"count": count, "journal": waiting}
