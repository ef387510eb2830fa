//! Transactions: commands that are queued, and then executed together.

use super::client::Call;
use super::reply::TOO_LONG;
use super::request::{Arguments, Found};
use super::store::{Done, Fault};

/// The most bytes that the commands of a transaction may have.
const LONGEST: usize = 64 << 20;
/// What each command counts beside its bytes, and each of its arguments.
const QUEUED: usize = 128;
const ARGUMENT: usize = 8;

/// A transaction that has begun.
#[derive(Default)]
pub(crate) struct Transaction {
    /// The commands, with the places of their arguments.
    queue: Vec<(Vec<u8>, Found)>,
    bytes: usize,
    /// A command could not be queued, so none will be executed.
    is_spoiled: bool,
    /// Its commands are being executed.
    executes: bool,
}

impl Transaction {
    /// Whether its commands are being executed. None of them waits for something then.
    pub(crate) fn executes(&self) -> bool {
        self.executes
    }

    pub(crate) fn spoil(&mut self) {
        self.is_spoiled = true;
        self.queue = Vec::new();
    }

    pub(crate) fn queue(&mut self, arguments: Arguments<'_>) -> Result<(), Fault> {
        if self.is_spoiled {
            return Ok(());
        }
        let (bytes, found) = arguments.to_owned();
        self.bytes += bytes.len() + QUEUED + ARGUMENT * arguments.len();
        if self.bytes > LONGEST {
            self.spoil();
            return Err("ERR the transaction is too long");
        }
        self.queue.push((bytes, found));
        Ok(())
    }
}

pub(crate) fn multi(call: &mut Call<'_, '_>, _: Arguments<'_>) -> Done {
    if call.session.transaction.is_some() {
        return Err("ERR MULTI calls can not be nested");
    }
    call.session.transaction = Some(Box::default());
    call.session.restrict();
    call.reply.ok();
    Ok(())
}

pub(crate) fn discard(call: &mut Call<'_, '_>, _: Arguments<'_>) -> Done {
    call.session.transaction.take().ok_or("ERR DISCARD without MULTI")?;
    call.session.restrict();
    call.reply.ok();
    Ok(())
}

/// Executes the queued commands; no other client's command comes between them.
pub(crate) fn exec(call: &mut Call<'_, '_>, _: Arguments<'_>) -> Done {
    let transaction = call.session.transaction.as_mut().ok_or("ERR EXEC without MULTI")?;
    let Transaction { queue, is_spoiled, .. } = std::mem::take(&mut **transaction);
    transaction.executes = true;
    if !is_spoiled {
        call.reply.array(queue.len());
        for (bytes, found) in &queue {
            let before = call.reply.len();
            call.execute(found.arguments(bytes));
            if call.reply.is_too_long() {
                call.reply.cut_back(before);
                call.reply.error(TOO_LONG);
            }
        }
    }
    call.session.transaction = None;
    call.session.restrict();
    match is_spoiled {
        true => Err("EXECABORT Transaction discarded because of previous errors."),
        false => Ok(()),
    }
}
