//! The commands about the connection and the server.

use socketserver::ConnectionId;

use super::client::Call;
use super::command::unknown_subcommand;
use super::pubsub;
use super::request::{Arguments, MAX_ARGUMENT, integer};
use super::store::{Done, Fault, SYNTAX};
use super::text::matches;

/// The version of Redis whose commands these are.
const VERSION: &str = "7.0.15";
/// The longest name of a client, in bytes.
const LONGEST_NAME: usize = 4096;
/// How many bytes of messages may wait for a subscriber, until it is closed.
pub(crate) const SUBSCRIBER_LIMIT: usize = 32 << 20;

/// `HELLO [2|3] [AUTH user password] [SETNAME name]`
pub(crate) fn hello(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let mut resp3 = call.session.resp3;
    if let Some(version) = arguments.get(1) {
        resp3 = match integer(version) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => return Err("NOPROTO unsupported protocol version"),
            None => return Err("ERR Protocol version is not an integer or out of range"),
        };
    }
    let (mut index, mut name) = (2, None);
    while index < arguments.len() {
        if arguments.is(index, "AUTH") && index + 2 < arguments.len() {
            check_user(&arguments[index + 1])?;
            index += 3;
        } else if arguments.is(index, "SETNAME") && index + 1 < arguments.len() {
            name = Some(valid_name(&arguments[index + 1])?);
            index += 2;
        } else {
            return Err(SYNTAX);
        }
    }
    call.session.resp3 = resp3;
    call.reply.resp3 = resp3;
    call.session.restrict();
    let mut hub = call.shared.hub();
    hub.count(call.session);
    if let (Some(name), Some(client)) = (name, hub.client(call.session.id)) {
        client.name = name;
    }
    call.reply.map(7);
    let texts =
        [("server", "redis"), ("version", VERSION), ("mode", "standalone"), ("role", "master")];
    for (name, text) in texts {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(text.as_bytes());
    }
    call.reply.bulk(b"proto");
    call.reply.integer(if resp3 { 3 } else { 2 });
    call.reply.bulk(b"id");
    call.reply.integer(number(call.session.id));
    call.reply.bulk(b"modules");
    call.reply.array(0);
    Ok(())
}

fn number(id: ConnectionId) -> i64 {
    u64::from(id) as i64
}

/// There is one user, and it has no password.
fn check_user(user: &[u8]) -> Done {
    match user {
        b"default" => Ok(()),
        _ => Err("WRONGPASS invalid username-password pair or user is disabled."),
    }
}

pub(crate) fn auth(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    match arguments.len() {
        2 => {
            Err("ERR AUTH <password> called without any password configured for the default user. \
                  Are you sure your configuration is correct?")
        }
        3 => {
            check_user(&arguments[1])?;
            call.reply.ok();
            Ok(())
        }
        _ => Err(SYNTAX),
    }
}

/// There is one database.
pub(crate) fn select(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    match integer(&arguments[1]) {
        Some(0) => call.reply.ok(),
        Some(_) => return Err("ERR DB index is out of range"),
        None => return Err("ERR invalid DB index"),
    }
    Ok(())
}

fn valid_name(name: &[u8]) -> Result<Vec<u8>, Fault> {
    match name.iter().all(u8::is_ascii_graphic) {
        true if name.len() > LONGEST_NAME => Err("ERR the name is too long"),
        true => Ok(name.to_vec()),
        false => Err("ERR Client names cannot contain spaces, newlines or special characters."),
    }
}

pub(crate) fn client(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let is = |word, len| arguments.is(1, word) && arguments.len() == len;
    let id = call.session.id;
    if is("ID", 2) {
        call.reply.integer(number(id));
    } else if is("GETNAME", 2) {
        let name = call.shared.hub().client(id).map(|client| client.name.clone());
        match name.filter(|name| !name.is_empty()) {
            Some(name) => call.reply.bulk(&name),
            None => call.reply.nil(),
        }
    } else if is("SETNAME", 3) {
        let name = valid_name(&arguments[2])?;
        if let Some(client) = call.shared.hub().client(id) {
            client.name = name;
        }
        call.reply.ok();
    } else if is("SETINFO", 4) {
        set_info(call, arguments)?;
    } else if is("INFO", 2) || arguments.is(1, "LIST") {
        list(call, arguments)?;
    } else if arguments.is(1, "KILL") && arguments.len() > 2 {
        kill(call, arguments)?;
    } else {
        unknown_subcommand("CLIENT", arguments, call.reply);
    }
    Ok(())
}

fn set_info(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let index = match arguments {
        _ if arguments.is(2, "LIB-NAME") => 0,
        _ if arguments.is(2, "LIB-VER") => 1,
        _ => {
            let option = String::from_utf8_lossy(&arguments[2]);
            call.reply.error(&format!("ERR Unrecognized option '{option}'"));
            return Ok(());
        }
    };
    let value = valid_name(&arguments[3])
        .map_err(|_| "ERR the value cannot contain spaces, newlines or special characters.")?;
    if let Some(client) = call.shared.hub().client(call.session.id) {
        client.library[index] = value;
    }
    call.reply.ok();
    Ok(())
}

/// Whether a client is of a type that `CLIENT LIST` and `CLIENT KILL` know.
fn is_of_type(client: &pubsub::Client, name: &[u8]) -> Result<bool, Fault> {
    let subscribed = client.channels + client.patterns > 0;
    match name.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(!subscribed),
        b"pubsub" => Ok(subscribed),
        b"master" | b"replica" | b"slave" => Ok(false),
        _ => Err("ERR Unknown client type"),
    }
}

/// `CLIENT INFO`, `CLIENT LIST`, `CLIENT LIST TYPE type`, `CLIENT LIST ID id ...`
fn list(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let hub = call.shared.hub();
    let mut text = String::new();
    for (id, client) in hub.clients() {
        let shown = match arguments.len() {
            2 => arguments.is(1, "LIST") || id == call.session.id,
            4 if arguments.is(2, "TYPE") => is_of_type(client, &arguments[3])?,
            4.. if arguments.is(2, "ID") => {
                let ids = arguments.from(3).map(|id| integer(id).filter(|id| *id > 0));
                let ids: Option<Vec<i64>> = ids.collect();
                ids.ok_or("ERR Invalid client ID")?.contains(&number(id))
            }
            _ => return Err(SYNTAX),
        };
        if shown {
            text += &line(id, client, call.store.now);
        }
    }
    call.reply.verbatim(&text);
    Ok(())
}

fn line(id: ConnectionId, client: &pubsub::Client, now: std::time::Instant) -> String {
    let pubsub::Client { sender, since, name, library: [library, version], .. } = client;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "id={id} addr={} name={} age={} flags={} db=0 sub={} psub={} resp={} lib-name={} lib-ver={} \
         user=default\n",
        sender.peer(),
        text(name),
        now.saturating_duration_since(*since).as_secs(),
        if client.channels + client.patterns > 0 { 'P' } else { 'N' },
        client.channels,
        client.patterns,
        if client.resp3 { 3 } else { 2 },
        text(library),
        text(version),
    )
}

/// `CLIENT KILL address`, or `CLIENT KILL` with filters of which all must match. A client is closed
/// at once, whatever waits for it; the one that asks is closed after the reply.
fn kill(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let is_old_form = arguments.len() == 3;
    if !is_old_form && !arguments.len().is_multiple_of(2) {
        return Err(SYNTAX);
    }
    let own = call.session.id;
    let hub = call.shared.hub();
    let mut killed = 0;
    let mut found = Vec::new();
    for (id, client) in hub.clients() {
        let matches = match is_old_form {
            true => client.sender.peer().to_string().as_bytes() == &arguments[2],
            false => matches_filters(call, arguments, id, client)?,
        };
        if matches {
            found.push((id, &client.sender));
        }
    }
    for (id, sender) in found {
        killed += 1;
        match id == own {
            true => call.session.closes = true,
            false => sender.abort(),
        }
    }
    match is_old_form {
        true if killed == 0 => return Err("ERR No such client"),
        true => call.reply.ok(),
        false => call.reply.count(killed),
    }
    Ok(())
}

fn matches_filters(
    call: &Call<'_, '_>,
    arguments: Arguments<'_>,
    id: ConnectionId,
    client: &pubsub::Client,
) -> Result<bool, Fault> {
    let (mut all, mut skips_itself) = (true, true);
    for (index, (_, value)) in arguments.pairs(2).enumerate() {
        let is = |word| arguments.is(2 + 2 * index, word);
        all &= if is("ID") {
            let given = integer(value).filter(|given| *given > 0);
            given.ok_or("ERR client-id should be greater than 0")? == number(id)
        } else if is("ADDR") {
            client.sender.peer().to_string().as_bytes() == value
        } else if is("TYPE") {
            is_of_type(client, value)?
        } else if is("USER") {
            value == b"default"
        } else if is("SKIPME") {
            skips_itself = match value.to_ascii_lowercase().as_slice() {
                b"yes" => true,
                b"no" => false,
                _ => return Err(SYNTAX),
            };
            true
        } else {
            return Err(SYNTAX);
        };
    }
    Ok(all && !(skips_itself && id == call.session.id))
}

/// `CONFIG GET pattern ...`: what clients ask for.
pub(crate) fn config(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    if !arguments.is(1, "GET") || arguments.len() < 3 {
        unknown_subcommand("CONFIG", arguments, call.reply);
        return Ok(());
    }
    let limit = format!("normal 0 0 0 slave 0 0 0 pubsub {SUBSCRIBER_LIMIT} 0 0");
    let max_argument = MAX_ARGUMENT.to_string();
    let parameters = [
        ("appendonly", "no"),
        ("client-output-buffer-limit", &*limit),
        ("databases", "1"),
        ("maxmemory", "0"),
        ("proto-max-bulk-len", &*max_argument),
        ("save", ""),
        ("timeout", "0"),
    ];
    let mut found = parameters.to_vec();
    found.retain(|(name, _)| {
        let name = name.as_bytes();
        arguments.from(2).any(|pattern| matches(&pattern.to_ascii_lowercase(), name))
    });
    call.reply.map(found.len());
    for (name, value) in found {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    Ok(())
}

/// `INFO [section ...]`
pub(crate) fn info(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let (clients, accepted) = {
        let hub = call.shared.hub();
        (hub.clients().count(), hub.accepted)
    };
    let store = &*call.store;
    let uptime = call.shared.started.elapsed().as_secs();
    let keyspace = match store.len() {
        0 => String::new(),
        keys => format!("db0:keys={keys},expires={},avg_ttl=0\r\n", store.expiring()),
    };
    let sections = [
        (
            "Server",
            format!(
                "redis_version:{VERSION}\r\nredis_mode:standalone\r\nserver:socketserver\r\n\
                 socketserver_mode:{}\r\nprocess_id:{}\r\nuptime_in_seconds:{uptime}\r\n",
                call.shared.mode,
                std::process::id(),
            ),
        ),
        (
            "Clients",
            format!("connected_clients:{clients}\r\nblocked_clients:{}\r\n", store.waiting.len()),
        ),
        (
            "Stats",
            format!(
                "total_connections_received:{accepted}\r\ntotal_commands_processed:{}\r\n\
                 expired_keys:{}\r\n",
                call.commands, store.expired,
            ),
        ),
        ("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned()),
        ("Keyspace", keyspace),
    ];
    let mut text = String::new();
    for (name, lines) in sections {
        let wanted = |wanted: &[u8]| {
            wanted.eq_ignore_ascii_case(name.as_bytes())
                || ["all", "default", "everything"]
                    .iter()
                    .any(|all| wanted.eq_ignore_ascii_case(all.as_bytes()))
        };
        if arguments.len() == 1 || arguments.from(1).any(wanted) {
            if !text.is_empty() {
                text += "\r\n";
            }
            text += &format!("# {name}\r\n{lines}");
        }
    }
    call.reply.verbatim(&text);
    Ok(())
}
