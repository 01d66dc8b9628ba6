//! Published ports.

use std::time::Duration;

use ipnet::IpNet;
use swarm_model::PortConfig;

use super::ConvertError;
use super::enumeration::read;
use super::field::{parsed, port};
use crate::v1;

impl TryFrom<v1::PortConfig> for PortConfig {
    type Error = ConvertError;

    fn try_from(message: v1::PortConfig) -> Result<Self, ConvertError> {
        let v1::PortConfig {
            protocol,
            target,
            published,
            mode,
            addresses,
            interfaces,
            policy,
            scheduler,
            affinity_s,
            sources,
            snat,
        } = message;
        Ok(Self {
            protocol: read::<v1::Protocol, _>("port.protocol", protocol)?,
            target: port("port.target", target)?,
            published: port("port.published", published)?,
            mode: read::<v1::PublishMode, _>("port.mode", mode)?,
            addresses: networks("port.addresses", &addresses)?,
            interfaces,
            policy: read::<v1::RoutingPolicy, _>("port.policy", policy)?,
            scheduler: read::<v1::Scheduler, _>("port.scheduler", scheduler)?,
            affinity: (affinity_s > 0).then(|| Duration::from_secs(affinity_s)),
            sources: networks("port.sources", &sources)?,
            snat,
        })
    }
}

fn networks(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, ConvertError> {
    texts
        .iter()
        .map(|text| parsed(field, "a network in CIDR form", text))
        .collect()
}

impl From<&PortConfig> for v1::PortConfig {
    fn from(config: &PortConfig) -> Self {
        let PortConfig {
            protocol,
            target,
            published,
            mode,
            addresses,
            interfaces,
            policy,
            scheduler,
            affinity,
            sources,
            snat,
        } = config;
        Self {
            protocol: v1::Protocol::from(protocol).into(),
            target: (*target).into(),
            published: (*published).into(),
            mode: v1::PublishMode::from(mode).into(),
            addresses: addresses.iter().map(IpNet::to_string).collect(),
            interfaces: interfaces.clone(),
            policy: v1::RoutingPolicy::from(policy).into(),
            scheduler: v1::Scheduler::from(scheduler).into(),
            affinity_s: affinity.map_or(0, |affinity| affinity.as_secs()),
            sources: sources.iter().map(IpNet::to_string).collect(),
            snat: *snat,
        }
    }
}
