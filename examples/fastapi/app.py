"""A chat backend as small as one can be and still keep its promises.

A chat becomes a row of the session log in PostgreSQL and a count in Redis. The answer says
where the session is: 200 = in PostgreSQL, 202 = in the local journal (PostgreSQL is away),
503 = nowhere, send it again. Sent again with the same id, it is stored once.

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

INSERT = 'INSERT INTO session_log (id, "user", message) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING'


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

    async def store(self, chat: Chat) -> bool:
        """True when the row is new, False when it was there."""
        return await self.execute(INSERT, chat.id, chat.user, chat.message) == "INSERT 0 1"

    def close(self):
        if self.pool is not None:
            self.pool.terminate()


class Journal:
    """Append-only, and on the disk before anybody is told so."""

    def __init__(self, path: Path):
        self.path, self.lock = path, asyncio.Lock()
        self.cleared = 0  # how often a resync wrote it back
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
    waiting = len(app.state.journal.sessions())
    log.info("%d sessions wait in the journal", waiting)
    yield
    app.state.database.close()
    await app.state.cache.aclose()


app = FastAPI(title="Chat backend", lifespan=lifespan)


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
        await app.state.database.store(chat)
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
                await app.state.database.store(chat)
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
    """Writes the journal back. The lock keeps new sessions out of it meanwhile, so that
    clearing it forgets nothing; the ids keep a row that is there already from being doubled."""
    async with app.state.journal.lock:
        sessions = app.state.journal.sessions()
        written = known = 0
        for session in sessions:
            try:
                if await app.state.database.store(session):
                    written += 1
                else:
                    known += 1
            except AWAY as error:
                left = len(sessions) - written - known
                raise HTTPException(503, f"{left} sessions are left in the journal, {why(error)}") from error
        app.state.journal.clear()
    log.info("state is in step again: %d sessions written back, %d known", written, known)
    return {"written": written, "known": known, "left": 0}


@app.get("/api/sessions")
async def sessions():
    async with app.state.journal.lock:
        waiting = len(app.state.journal.sessions())
    try:
        count = await app.state.database.value("SELECT count(*) FROM session_log")
    except AWAY as error:
        raise HTTPException(503, why(error)) from error
    return {"count": count, "journal": waiting}
