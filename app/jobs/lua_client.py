"""Redis scripts of the clients: enqueueing in batches, aborting, withdrawing."""

from app.jobs.lua import PRELUDE

ENQUEUE = (
    PRELUDE
    + """
-- KEYS rq:queues.  ARGV prefix; then for each job its serialized call, its description, before them one line of:
--      id, when ('-' at once, '+5' in 5 s, else unix s), most seconds from then until its start, time as RQ writes
--      it, timeout, result_ttl, failure_ttl (s, '-' none), number of its first try, 1 to replace one that is over,
--      queue
-- As rq.scripts.UNIQUE_ENQUEUE_SCRIPT and UNIQUE_SCHEDULE_SCRIPT; empty fields, which RQ reads as missing, are
-- left out, and expires_at, job_try, due_at are ours. Answer: 1 for each job, 0 where its id is taken, an error
-- where it cannot be placed
local made, seen = {}, {}
local LINE = '^' .. string.rep('(%S+) ', 9) .. '(.*)$'
local over = {finished = true, failed = true, stopped = true, canceled = true}

-- A job that came too late makes way, as in arq, where its key is gone by then; not one that somebody has in hand:
-- found neither in the list nor among the deferred, it may be starting now, and its id must not run twice.
local function has_expired(id, status, expires_at, origin)
    if not expires_at or not (status == 'queued' or status == 'scheduled') then return false end
    if (tonumber(expires_at) or now) >= now then return false end
    return redis.call('ZREM', prefix .. ':scheduled:' .. origin, id) == 1
        or redis.call('LREM', prefix .. ':queue:' .. origin, 1, id) == 1
end

local function is_taken(id, queue, replace)
    if not is_record(id) then
        -- not without need: after a DEL a Redis that is full takes the job as well
        if redis.call('EXISTS', job_key(id)) == 1 then redis.call('DEL', job_key(id)) end
        return false
    end
    local status, expires_at, origin = unpack(redis.call('HMGET', job_key(id), 'status', 'expires_at', 'origin'))
    local makes_way = status and replace and over[status]
    if makes_way or has_expired(id, status, expires_at, origin or queue) then
        redis.call('DEL', job_key(id), prefix .. ':results:' .. id)
        for _, registry in ipairs({'finished', 'failed', 'canceled'}) do
            redis.call('ZREM', prefix .. ':' .. registry .. ':' .. queue, id)
        end
        return false
    end
    return true
end

local function place(id, queue, due, life)
    if life then redis.call('EXPIRE', job_key(id), math.min(life, 1e11)) end
    if due <= now then
        redis.call('RPUSH', prefix .. ':queue:' .. queue, id)
    else
        redis.call('ZADD', prefix .. ':scheduled:' .. queue, string.format('%.6f', due), id)
    end
    if not seen[queue] then
        seen[queue] = true
        redis.call('SADD', KEYS[1], prefix .. ':queue:' .. queue)
    end
end

local function enqueue(line, data, description)
    local id, when, expires, moment, timeout, result_ttl, failure_ttl, tries, replace, queue =
        string.match(line, LINE)
    if is_taken(id, queue, replace == '1') then return 0 end
    local due = when ~= '-' and tonumber(when) or now
    if string.sub(when, 1, 1) == '+' then due = now + due end
    local is_due = due <= now
    tries = tonumber(tries)
    local fields = {'created_at', moment, 'data', data, 'origin', queue, 'description', description,
        'status', is_due and 'queued' or 'scheduled', 'retries_left', math.max(0, 5 - tries)}
    local function add(name, value)
        if value ~= '-' then
            fields[#fields + 1] = name
            fields[#fields + 1] = value
        end
    end
    add('enqueued_at', is_due and moment or '-')
    add('due_at', is_due and when or '-')  -- arq's score; of a later one MOVE_DUE keeps it
    add('timeout', timeout)
    add('result_ttl', result_ttl)
    add('failure_ttl', failure_ttl)
    add('job_try', tries > 1 and tries - 1 or '-')
    local life = nil
    if expires ~= '-' then
        add('expires_at', string.format('%.3f', math.max(due, now) + tonumber(expires)))
        -- a day later, should no worker of ours be there to say that it has expired
        life = math.ceil(math.max(0, due - now) + tonumber(expires)) + 86400
    end
    redis.call('HSET', job_key(id), unpack(fields))
    local is_done, err = pcall(place, id, queue, due, life)
    if is_done then return 1 end
    redis.call('DEL', job_key(id))
    return {err = reason(err)}
end

for at = 2, #ARGV, 3 do made[#made + 1] = enqueue(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
return made
"""
)

ABORT = (
    PRELUDE
    + """
-- ARGV prefix, id, its field that marks an abort, channel of commands without the worker's name, the command
-- A running job's worker is told; one that waits goes to the head of its queue, where a worker records its end.
-- Answer: 1, or 0 where there is nothing to abort
local id, key = ARGV[2], job_key(ARGV[2])
local status, worker, queue = unpack(redis.call('HMGET', key, 'status', 'worker_name', 'origin'))
if status == 'started' then
    redis.call('HSET', key, ARGV[3], '1')
    redis.call('PUBLISH', ARGV[4] .. (worker or ''), ARGV[5])
    return 1
end
if not queue or not (status == 'queued' or status == 'scheduled' or status == 'deferred') then return 0 end
redis.call('HSET', key, ARGV[3], '1', 'status', 'queued')
redis.call('ZREM', prefix .. ':scheduled:' .. queue, id)
redis.call('ZREM', prefix .. ':deferred:' .. queue, id)
redis.call('LREM', prefix .. ':queue:' .. queue, 1, id)
redis.call('LPUSH', prefix .. ':queue:' .. queue, id)
return 1
"""
)

WITHDRAW = (
    PRELUDE
    + """
-- ARGV prefix, ids
-- Records go, and what is due later; an id in a queue's list stays, for to find it there takes as long as the list:
-- claims, RQ's too, pass over an id without a record. Answer: how many jobs have been withdrawn
local withdrawn = 0
for place = 2, #ARGV do
    local key, status, queue = job_key(ARGV[place]), nil, nil
    if is_record(ARGV[place]) then status, queue = unpack(redis.call('HMGET', key, 'status', 'origin')) end
    if status == 'scheduled' then redis.call('ZREM', prefix .. ':scheduled:' .. queue, ARGV[place]) end
    if status == 'queued' or status == 'scheduled' then
        redis.call('DEL', key)
        withdrawn = withdrawn + 1
    end
end
return withdrawn
"""
)
