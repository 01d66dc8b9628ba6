//! The conversation with the kernel.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::message::{MAX_ELEMENTS, Message};
use super::ruleset::{BaseChain, Family, Ruleset};
use crate::network::netlink::{NetlinkError, Socket};

/// nf_tables of one network namespace.
#[derive(Debug)]
pub(in super::super) struct Nftables {
    socket: Socket<Message>,
}

impl Nftables {
    /// Of the calling thread's namespace. Succeeds also where the kernel has no nf_tables; the
    /// first question then fails.
    pub(in super::super) fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::of_protocol(NETLINK_NETFILTER)?;
        Ok(Self { socket })
    }

    /// A number that changes with every change of any table of the namespace, by anybody.
    pub(in super::super) fn generation(&mut self) -> Result<u32, NetlinkError> {
        let answer = self.socket.get(Message::get_generation())?;
        answer.generation().ok_or(NetlinkError::NoAnswer)
    }

    /// Everything in a table; nothing when there is no such table.
    pub(in super::super) fn table(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<Option<Ruleset>, NetlinkError> {
        let flags = match self.socket.get(Message::get_table(family, table)) {
            Ok(answer) => answer.table_flags(),
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut ruleset = Ruleset {
            flags,
            ..Ruleset::default()
        };
        for message in self.socket.dump(&Message::get_chains(family))? {
            if let Some((_, of, name, hook)) = message.chain()
                && of == table
            {
                ruleset.chains.entry(name).or_default().hook = hook;
            }
        }
        for message in self.socket.dump(&Message::get_rules(family, table))? {
            if let Some((of, chain, rule)) = message.rule()
                && of == table
            {
                ruleset.chains.entry(chain).or_default().rules.push(rule);
            }
        }
        for message in self.socket.dump(&Message::get_sets(family, table))? {
            if let Some((of, name, set)) = message.set()
                && of == table
            {
                ruleset.sets.insert(name, set);
            }
        }
        for (name, set) in &mut ruleset.sets {
            let request = Message::get_elements(family, table, name);
            let answers = self.socket.dump(&request)?;
            set.values = answers.iter().flat_map(Message::elements).collect();
        }
        Ok(Some(ruleset))
    }

    /// The chains that the kernel asks, of all tables.
    pub(in super::super) fn base_chains(&mut self) -> Result<Vec<BaseChain>, NetlinkError> {
        let request = Message::get_chains(Family::UNSPECIFIED);
        let answers = self.socket.dump(&request)?;
        Ok(answers.iter().filter_map(Message::base_chain).collect())
    }

    /// Whether `text` occurs in some rule of a table, however it is meant there.
    pub(in super::super) fn mentions(
        &mut self,
        family: Family,
        table: &str,
        text: &str,
    ) -> Result<bool, NetlinkError> {
        let answers = self.socket.dump(&Message::get_rules(family, table))?;
        let text = text.as_bytes();
        let occurs = |message: &Message| {
            let mut windows = message.content.windows(text.len().max(1));
            windows.any(|window| window == text)
        };
        Ok(answers.iter().any(occurs))
    }

    /// Makes a table, in the place of one that is there, in one transaction.
    pub(in super::super) fn replace_table(
        &mut self,
        family: Family,
        table: &str,
        ruleset: &Ruleset,
    ) -> Result<(), NetlinkError> {
        // Made first, so that there is one to delete.
        let mut batch = vec![
            (Message::begin(), 0),
            (Message::new_table(family, table), NLM_F_CREATE),
            (Message::delete_table(family, table), 0),
            (Message::new_table(family, table), NLM_F_CREATE),
        ];
        for (id, (name, set)) in (1..).zip(&ruleset.sets) {
            let message = Message::new_set(family, table, name, id, set);
            batch.push((message, NLM_F_CREATE));
            let values: Vec<_> = set.values.iter().cloned().collect();
            for values in values.chunks(MAX_ELEMENTS) {
                let message = Message::new_elements(family, table, name, values);
                batch.push((message, NLM_F_CREATE));
            }
        }
        for (name, chain) in &ruleset.chains {
            let message = Message::new_chain(family, table, name, chain);
            batch.push((message, NLM_F_CREATE));
        }
        for (name, chain) in &ruleset.chains {
            for rule in &chain.rules {
                let message = Message::new_rule(family, table, name, rule);
                batch.push((message, NLM_F_CREATE | NLM_F_APPEND));
            }
        }
        batch.push((Message::end(), 0));
        self.socket.batch(batch)
    }

    /// Adds values to a set and takes others out of it, in one transaction.
    pub(in super::super) fn change_elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        add: &[Vec<u8>],
        remove: &[Vec<u8>],
    ) -> Result<(), NetlinkError> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let mut batch = vec![(Message::begin(), 0)];
        for values in add.chunks(MAX_ELEMENTS) {
            let message = Message::new_elements(family, table, set, values);
            batch.push((message, NLM_F_CREATE));
        }
        for values in remove.chunks(MAX_ELEMENTS) {
            batch.push((Message::delete_elements(family, table, set, values), 0));
        }
        batch.push((Message::end(), 0));
        self.socket.batch(batch)
    }

    /// Deletes a table, when it is there.
    pub(in super::super) fn delete_table(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<(), NetlinkError> {
        self.socket.batch(vec![
            (Message::begin(), 0),
            (Message::new_table(family, table), NLM_F_CREATE),
            (Message::delete_table(family, table), 0),
            (Message::end(), 0),
        ])
    }
}
