"""Redis scripts of the upkeep: due jobs, heartbeats, and what dead workers left behind."""

from rq.rate_limit import ACQUIRE_AND_ENQUEUE_SCRIPT

from app.jobs.lua import PRELUDE

MOVE_DUE = (
    PRELUDE
    + "local function fill_slots(KEYS, ARGV)"
    + ACQUIRE_AND_ENQUEUE_SCRIPT
    + """
end
-- KEYS rq:queues; then triples: scheduled registry, queue, scheduler's lock
-- ARGV prefix, most jobs a queue, time as RQ writes it, our mark in the lock, its life (s)
-- As rq.scheduler.RQScheduler.enqueue_scheduled_jobs; due_at is ours, for arq's score. ZREM decides between our
-- workers; a stock scheduler, which does not ask, is kept away by its own lock, and where one holds it the moving
-- is left to it.
-- Answer: seconds until the next job is due ('' for none), how many have been moved
local soonest, moved = nil, 0

-- as rq.queue: _enqueue_rate_limited_job; the key's slots are filled from those that wait longest
local function queue_limited(id, limit, most, is_front)
    local key = prefix .. ':rl:' .. limit
    redis.call('SADD', prefix .. ':rl-keys', limit)
    redis.call('HSET', key, 'concurrency', most)
    redis.call('HSET', job_key(id), 'status', 'rate_limited')
    if is_front then redis.call('HSET', job_key(id), 'enqueue_at_front', '1') end
    redis.call('ZADD', key .. ':rate_limited', now, id)
    fill_slots({key .. ':allowed', key .. ':rate_limited'},
        {most, now, ARGV[3], prefix .. ':queue:', prefix .. ':job:'})
end

-- what was taken from a lost worker goes to the front, the rest as rq.job: should_enqueue_at_front says
local function queue_job(id, queue, due_at)
    local front, retry_front, ended, crashes, limit, most = unpack(redis.call('HMGET', job_key(id),
        'enqueue_at_front', 'enqueue_at_front_on_retry', 'ended_at', 'crashes', 'rate_limit_key',
        'rate_limit_concurrency'))
    local is_front = front == '1' or retry_front == '1' and (ended or '') ~= '' or (tonumber(crashes) or 0) > 0
    if (limit or '') ~= '' and tonumber(most) then
        queue_limited(id, limit, most, is_front)
    else
        redis.call('HSET', job_key(id), 'status', 'queued', 'enqueued_at', ARGV[3], 'due_at', due_at)
        redis.call(is_front and 'LPUSH' or 'RPUSH', queue, id)
    end
end

for place = 2, #KEYS, 3 do
    local registry, queue, lock = KEYS[place], KEYS[place + 1], KEYS[place + 2]
    local kind = redis.call('TYPE', queue).ok  -- where another key is in the queue's place, jobs stay due
    local first = (kind == 'list' or kind == 'none') and redis.call('ZRANGE', registry, 0, 0, 'WITHSCORES')[2]
    if first then
        local holder = redis.call('GET', lock)
        if not holder or holder == ARGV[4] then
            redis.call('EXPIRE', lock, ARGV[5])  -- before what takes memory, as a full Redis wants it
            redis.call('SET', lock, ARGV[4], 'EX', ARGV[5])
            local due = redis.call('ZRANGEBYSCORE', registry, '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
            for at = 1, #due, 2 do
                local id = due[at]
                redis.call('ZREM', registry, id)
                if is_record(id) then
                    queue_job(id, queue, due[at + 1])
                    redis.call('SADD', KEYS[1], queue)
                    moved = moved + 1
                end
            end
            first = redis.call('ZRANGE', registry, 0, 0, 'WITHSCORES')[2]
            if first then
                local wait = math.max(0, tonumber(first) - now)
                if not soonest or wait < soonest then soonest = wait end
            end
        end
    end
end
return {soonest and tostring(soonest) or '', moved}
"""
)

TAKE_BACK = (
    PRELUDE
    + """
-- KEYS wip registry.  ARGV prefix, queue's name, most crashes
-- Jobs whose worker has not been heard of run again, where rq.registry.StartedJobRegistry.cleanup would fail them:
-- in front, after a random part of 1 s, of 2 s after the second crash. What died together does not come back
-- together. One with a rate limit keeps its slot, and waits in its queue.
-- Answer: ids taken back, members whose job has ended too many workers, pairs of a member that is no good and why
redis.call('ZREM', KEYS[1], '')  -- a full Redis asks only a script's first write whether it takes memory
math.randomseed(tonumber(clock[2]))
local back, poison, broken = {}, {}, {}

local function is_unsettled(id)
    local status = redis.call('HGET', job_key(id), 'status')
    if status ~= 'scheduled' then return status == 'started' end
    -- RQ's code says so before it puts a delayed retry there
    return not redis.call('ZSCORE', prefix .. ':scheduled:' .. ARGV[2], id)
end

local function take_back(member)
    local id, execution = parts(member)
    if id and is_record(id) and is_unsettled(id) then
        local key = job_key(id)
        local crashes, tries, limit = unpack(redis.call('HMGET', key, 'crashes', 'job_try', 'rate_limit_key'))
        crashes = (tonumber(crashes) or 0) + 1
        redis.call('HSET', key, 'crashes', crashes)
        if crashes >= tonumber(ARGV[3]) then
            redis.call('ZADD', KEYS[1], now + 60, member)
            poison[#poison + 1] = member
            return
        end
        redis.call('HSET', key, 'job_try', (tonumber(tries) or 0) + 1)
        forget_execution(id, execution)
        if limit and limit ~= '' then
            run_again(id, ARGV[2])
        else
            run_in(id, ARGV[2], math.random() * crashes)
        end
        back[#back + 1] = id
    end
    redis.call('ZREM', KEYS[1], member)
end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)) do
    local is_done, err = pcall(take_back, member)
    if not is_done then broken[#broken + 1] = {member, reason(err)} end
end
return {back, poison, broken}
"""
)

DISOWN = (
    PRELUDE
    + """
-- KEYS a worker's executions.  ARGV prefix, how the execution ids of a claim begin
-- A claim whose answer was lost: what it started is put back, as if it had never been taken.
local back = 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local id, execution = parts(member)
    if id and string.sub(execution, 1, #ARGV[2]) == ARGV[2] then
        redis.call('SREM', KEYS[1], member)
        forget_execution(id, execution)
        local queue = is_record(id) and redis.call('HGET', job_key(id), 'origin')
        if queue and redis.call('ZREM', wip_key(queue), member) == 1 then
            run_again(id, queue)
            back = back + 1
        end
    end
end
return back
"""
)

BEAT = (
    PRELUDE
    + """
-- KEYS worker, its executions.  ARGV prefix, lease (s), life of the worker's records (s), worker's name, time as RQ
--      writes it, the field that marks arq's abort; then for each job queue, id, execution id, its start (unix s)
-- As rq.worker: heartbeat, maintain_heartbeats. Answer: whether Redis knows the worker, executions lost to others,
--      executions that are to be aborted: the command may not have been heard
local lease, moment, lost, aborted = tonumber(ARGV[2]), ARGV[5], {}, {}
local known = redis.call('HEXISTS', KEYS[1], 'birth')
redis.call('EXPIRE', KEYS[2], ARGV[3])  -- before what takes memory: a full Redis asks only a script's first write
redis.call('HSET', KEYS[1], 'last_heartbeat', moment)
redis.call('EXPIRE', KEYS[1], ARGV[3])
for at = 7, #ARGV, 4 do
    local queue, id, execution = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local member = id .. ':' .. execution
    if redis.call('ZSCORE', wip_key(queue), member) then
        local record, all = prefix .. ':execution:' .. member, prefix .. ':executions:' .. id
        redis.call('ZADD', wip_key(queue), now + lease, member)
        redis.call('HSET', record, 'id', execution, 'job_id', id, 'created_at', ARGV[at + 3], 'last_heartbeat', now,
            'worker_name', ARGV[4])
        redis.call('EXPIRE', record, lease)
        redis.call('ZADD', all, now + lease + 60, execution)
        redis.call('EXPIRE', all, lease + 60)
        if is_record(id) then
            redis.call('HSET', job_key(id), 'last_heartbeat', moment)
            if redis.call('HEXISTS', job_key(id), ARGV[6]) == 1 then aborted[#aborted + 1] = execution end
        end
    elseif redis.call('EXISTS', job_key(id)) == 1 then
        lost[#lost + 1] = execution  -- no entry and no job: Redis lost its memory, and nobody else runs it
        forget_execution(id, execution)
        redis.call('SREM', KEYS[2], member)
    end
end
return {known, lost, aborted}
"""
)

UNSTICK = """
-- KEYS intermediate list, queue.  ARGV ids that lay there for too long
-- As rq.intermediate_queue.IntermediateQueue.cleanup, but the job runs instead of failing.
local back = 0
for _, id in ipairs(ARGV) do
    if redis.call('LREM', KEYS[1], 1, id) > 0 then
        redis.call('LPUSH', KEYS[2], id)
        back = back + 1
    end
end
return back
"""
