//! `swarmctl service scale`.

use swarm_model::ServiceMode;

use super::converge::Waiting;
use crate::connect::Sockets;

/// Sets the number of tasks of services.
#[derive(Debug, clap::Args)]
pub(crate) struct Scale {
    #[command(flatten)]
    waiting: Waiting,
    /// Service and number of tasks, such as web=6; may be given several times
    #[arg(value_name = "SERVICE=REPLICAS", required = true, value_parser = parse_scale)]
    services: Vec<(String, u64)>,
}

impl Scale {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut changed = Vec::with_capacity(self.services.len());
        for (reference, replicas) in self.services {
            let service = super::edit(&mut control, &reference, |spec| {
                spec.mode = ServiceMode::Replicated { replicas };
                Ok(())
            });
            let service = service.await?;
            println!("{reference} scaled to {replicas}");
            changed.push(service.id);
        }
        for id in changed {
            self.waiting.wait(&mut control, &id).await?;
        }
        Ok(())
    }
}

fn parse_scale(text: &str) -> Result<(String, u64), String> {
    let invalid = || format!("{text:?} is not SERVICE=REPLICAS, for example web=6");
    let (service, replicas) = text.split_once('=').ok_or_else(invalid)?;
    let replicas = replicas.parse().map_err(|_| invalid())?;
    if service.is_empty() {
        Err(invalid())
    } else {
        Ok((service.to_owned(), replicas))
    }
}

#[cfg(test)]
mod tests {
    use super::parse_scale;

    #[test]
    fn pairs_are_read() {
        assert_eq!(parse_scale("web=6"), Ok(("web".to_owned(), 6)));
        for text in ["web", "=6", "web=", "web=-1", "web=many"] {
            assert!(parse_scale(text).is_err(), "{text}");
        }
    }
}
