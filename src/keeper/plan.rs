//! What a child needs besides fds, as the bytes of a memfd: of any size that execve takes.
//!
//! Refuses: bytes of another version, and a plan that is not read to its end.

use crate::keeper::codec::{CodecError, MAGIC, VERSION};
use crate::keeper::reader::Reader;
use crate::keeper::wire::{Ids, SpawnPlan};

/// The plan as the bytes of its memfd.
pub fn encode_plan(plan: &SpawnPlan) -> Vec<u8> {
    let [m0, m1] = MAGIC;
    let mut out = vec![m0, m1, VERSION, u8::from(plan.no_new_privs)];
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let put_text = |out: &mut Vec<u8>, text: &[u8]| {
        out.extend(count(text.len()));
        out.extend(text);
    };
    put_text(&mut out, &plan.path);
    for list in [&plan.argv, &plan.env, &plan.pid_env] {
        out.extend(count(list.len()));
        list.iter().for_each(|text| put_text(&mut out, text));
    }
    out.push(u8::from(plan.cwd.is_some()));
    put_text(&mut out, plan.cwd.as_deref().unwrap_or(b""));
    out.extend(plan.umask.to_le_bytes());
    out.extend(count(plan.rlimits.len()));
    for (resource, soft, hard) in &plan.rlimits {
        out.extend(resource.to_le_bytes());
        out.extend(soft.to_le_bytes());
        out.extend(hard.to_le_bytes());
    }
    for number in [plan.nice, plan.oom_score_adj] {
        out.push(u8::from(number.is_some()));
        out.extend(number.unwrap_or(0).to_le_bytes());
    }
    out.push(u8::from(plan.ids.is_some()));
    if let Some(ids) = &plan.ids {
        out.extend(ids.uid.to_le_bytes());
        out.extend(ids.gid.to_le_bytes());
        out.extend(count(ids.groups.len()));
        ids.groups.iter().for_each(|gid| out.extend(gid.to_le_bytes()));
    }
    out
}

/// The plan in the bytes of a memfd.
///
/// # Errors
/// See `CodecError`.
pub fn decode_plan(bytes: &[u8]) -> Result<SpawnPlan, CodecError> {
    let mut from = Reader(bytes);
    let no_new_privs = match from.kind()? {
        0 => false,
        1 => true,
        _ => return Err(CodecError::Value("flag")),
    };
    let path = from.long_text()?;
    let argv = from.list(|from| from.long_text())?;
    let env = from.list(|from| from.long_text())?;
    let pid_env = from.list(|from| from.long_text())?;
    let has_cwd = from.flag()?;
    let cwd = from.long_text()?;
    let umask = from.u32()?;
    let rlimits = from.list(|from| Ok((from.u32()?, from.u64()?, from.u64()?)))?;
    let nice = from.optional_i32()?;
    let oom_score_adj = from.optional_i32()?;
    let ids = if from.flag()? {
        Some(Ids { uid: from.u32()?, gid: from.u32()?, groups: from.list(|from| from.u32())? })
    } else {
        None
    };
    from.end()?;
    let cwd = has_cwd.then_some(cwd);
    Ok(SpawnPlan { path, argv, env, pid_env, cwd, ids, umask, rlimits, nice, oom_score_adj, no_new_privs })
}
