"""Redis scripts of the worker: what must not be torn apart. Nothing newer than Redis 6.2."""

CLAIM = """
-- KEYS[1] rq:suspended; then pairs: queue, its intermediate list.  ARGV[1] most ids
-- As rq.queue.Queue.lmove, for many ids and several queues in one step.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'suspended'} end
local limit, taken = tonumber(ARGV[1]), {}
for place = 2, #KEYS, 2 do
    while #taken < limit do
        local id = redis.call('LMOVE', KEYS[place], KEYS[place + 1], 'LEFT', 'RIGHT')
        if not id then break end
        taken[#taken + 1] = {KEYS[place], id}
    end
end
return taken
"""

MOVE_DUE = """
-- KEYS scheduled registry, queue, rq:queues.  ARGV now, most ids, enqueued_at, job key prefix
-- As rq.scheduler.RQScheduler.enqueue_scheduled_jobs; ZREM decides between rivals.
local moved = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])) do
    if redis.call('ZREM', KEYS[1], id) == 1 and redis.call('EXISTS', ARGV[4] .. id) == 1 then
        redis.call('HSET', ARGV[4] .. id, 'status', 'queued', 'enqueued_at', ARGV[3])
        redis.call('RPUSH', KEYS[2], id)
        redis.call('SADD', KEYS[3], KEYS[2])
        moved = moved + 1
    end
end
return moved
"""

TAKE_BACK = """
-- KEYS wip registry, queue.  ARGV now, most crashes, prefix of rq's keys
-- Jobs whose worker has not been heard of run again, at the front; rq.registry.StartedJobRegistry.cleanup
-- would fail them. The answer: ids taken back, then how many crashed too often (left for RQ to fail).
local back, poison = {}, 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 100)) do
    local id, execution = string.match(member, '^(.*):(.*)$')
    local job = ARGV[3] .. ':job:' .. (id or member)
    if id and redis.call('HGET', job, 'status') == 'started' then
        if redis.call('HINCRBY', job, 'crashes', 1) >= tonumber(ARGV[2]) then
            poison = poison + 1
        else
            redis.call('ZREM', KEYS[1], member)
            redis.call('DEL', ARGV[3] .. ':execution:' .. member)
            redis.call('ZREM', ARGV[3] .. ':executions:' .. id, execution)
            redis.call('HSET', job, 'status', 'queued', 'worker_name', '')
            redis.call('LPUSH', KEYS[2], id)
            back[#back + 1] = id
        end
    else
        redis.call('ZREM', KEYS[1], member)
    end
end
return {back, poison}
"""

FORGET_SETTLED = """
-- KEYS job, results, finished, failed and canceled registries.  ARGV job id
-- A job that is over no longer keeps its id: as rq.job.Job.delete, without its dependents.
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'finished' or status == 'failed' or status == 'stopped' or status == 'canceled' then
    redis.call('DEL', KEYS[1], KEYS[2])
    for place = 3, 5 do redis.call('ZREM', KEYS[place], ARGV[1]) end
    return 1
end
return 0
"""

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
