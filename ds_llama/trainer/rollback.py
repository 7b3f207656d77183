"""Back to the newest checkpoint, in the same processes, without the samples that were seen since.

    samples   0 ······ A ············ B ·······      checkpoint at A, what was wrong was seen at B
    before    trained  trained, lost
    after     trained  left out       trained        the steps go on from the checkpoint's

A run that only left out the last window would come to the same place, since everything before it
is the same again: what led there is left out too, as in PaLM (arXiv:2204.02311, section 5.1).
"""

from __future__ import annotations

from ds_llama.checkpoint import resume as resuming
from ds_llama.checkpoint.choose import choose
from ds_llama.checkpoint.save import save
from ds_llama.errors import RunError
from ds_llama.measure import pulse
from ds_llama.trainer import events
from ds_llama.trainer.job import Job, schedule_of
from ds_llama.zero import world


def roll_back(job: Job, why: str) -> None:
    """Take up the newest whole checkpoint, go on after the window that was just seen; collective.

    What is loaded is proved by the checkpoint's checksums, as in any resume. The checkpoint is then
    committed anew with the position in the data, so that a resume from it leaves out the same.
    Raises RunError without a checkpoint, and after `stability.max_rollbacks` of them.
    """
    state, most = job.state, job.resolved.run.stability.max_rollbacks
    step, seen = state.step + 1, state.samples_seen + job.loader.samples
    if len(state.rollbacks) >= most:
        raise _failed(job, f"{why}, after {most} rollbacks", "look at what the run learns from")
    with pulse.within("resume"), job.meter.outside_step():
        job.background.finish()
        newest = choose(job.checkpoints, "auto")
        if newest is None:
            raise _failed(job, f"{why}, and there is no checkpoint to go back to", _SAVE_MORE)
        before = state.rollbacks
        state.restore(resuming.load(job.engine, newest, job.resolved))
        left_out = [state.samples_seen, seen]
        event = {"from_step": step, "to_step": state.step, "samples": left_out, "why": why}
        state.rollbacks = [*before, event]
        state.samples_seen = seen
        job.loader.close()
        job.loader = job.open_loader(state)
        job.schedule = schedule_of(job.resolved, state)
        if world.rank() == 0:
            for tracker in job.trackers:
                tracker.rewind(state.step)
            events.record(job.output, "rollback", step, why, to_step=state.step, samples=left_out)
        kept = state.to_dict()
        save(job.engine, job.checkpoints, state.step, kept, job.resolved, records=job.records)


_SAVE_MORE = "make checkpoint.every_steps smaller, or let stability skip"


def _failed(job: Job, what: str, remedy: str) -> RunError:
    return RunError(what, where=f"step {job.state.step + 1} of {job.output}", remedy=remedy)
