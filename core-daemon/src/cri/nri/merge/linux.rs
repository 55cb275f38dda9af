//! What is Linux's.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Field;

use super::super::apply::marked;
use super::{One, resources};
use crate::error::Result;

impl One<'_> {
    pub(super) fn linux(
        &mut self,
        wanted: api::LinuxContainerAdjustment,
        shown: &mut api::LinuxContainer,
        adjust: &mut api::LinuxContainerAdjustment,
    ) -> Result<()> {
        let paths = |device: &api::LinuxDevice| device.path.clone();
        self.list(Field::Devices, wanted.devices, &mut shown.devices, &mut adjust.devices, paths)?;
        if let Some(limits) = wanted.resources {
            resources::claim(self.owners, &self.id, &limits, self.plugin)?;
            resources::lay_over(shown.resources.get_or_insert_default(), &limits);
            resources::lay_over(adjust.resources.get_or_insert_default(), &limits);
        }
        if !wanted.cgroups_path.is_empty() {
            self.owners.claim(&self.id, Field::CgroupsPath, self.plugin)?;
            shown.cgroups_path.clone_from(&wanted.cgroups_path);
            adjust.cgroups_path = wanted.cgroups_path;
        }
        let (score, place) = (wanted.oom_score_adj, &mut shown.oom_score_adj);
        self.value(Field::OomScoreAdj, score, Some(place), &mut adjust.oom_score_adj)?;
        let (priority, place) = (wanted.io_priority, &mut shown.io_priority);
        self.value(Field::IoPriority, priority, Some(place), &mut adjust.io_priority)?;
        let (policy, place) = (wanted.seccomp_policy, &mut shown.seccomp_policy);
        self.value(Field::SeccompPolicy, policy, Some(place), &mut adjust.seccomp_policy)?;
        let (scheduler, place) = (wanted.scheduler, &mut shown.scheduler);
        self.value(Field::LinuxSched, scheduler, Some(place), &mut adjust.scheduler)?;
        self.value(Field::MemoryPolicy, wanted.memory_policy, None, &mut adjust.memory_policy)?;
        self.namespaces(wanted.namespaces, &mut shown.namespaces, &mut adjust.namespaces)?;
        self.map(Field::Sysctl, wanted.sysctl, &mut shown.sysctl, &mut adjust.sysctl, String::new)?;
        let (devices, all) = (&mut shown.net_devices, &mut adjust.net_devices);
        self.map(Field::LinuxNetDevices, wanted.net_devices, devices, all, api::LinuxNetDevice::default)?;
        match wanted.rdt {
            Some(rdt) => self.cache(rdt, &mut shown.rdt, &mut adjust.rdt),
            None => Ok(()),
        }
    }

    /// A value that one plugin may set.
    fn value<T: Clone>(
        &mut self,
        field: Field,
        wanted: Option<T>,
        shown: Option<&mut Option<T>>,
        adjust: &mut Option<T>,
    ) -> Result<()> {
        if wanted.is_none() {
            return Ok(());
        }
        self.owners.claim(&self.id, field, self.plugin)?;
        if let Some(shown) = shown {
            shown.clone_from(&wanted);
        }
        *adjust = wanted;
        Ok(())
    }

    /// Namespaces are one plugin's each, also where it removes one.
    fn namespaces(
        &mut self,
        wanted: Vec<api::LinuxNamespace>,
        shown: &mut Vec<api::LinuxNamespace>,
        adjust: &mut Vec<api::LinuxNamespace>,
    ) -> Result<()> {
        for one in wanted {
            let gone = marked(&one.r#type).map(str::to_owned);
            let kind = gone.clone().unwrap_or_else(|| one.r#type.clone());
            self.owners.claim_entry(&self.id, Field::Namespace, &kind, self.plugin)?;
            shown.retain(|old| old.r#type != kind);
            if gone.is_none() {
                shown.push(one.clone());
            }
            adjust.push(one);
        }
        Ok(())
    }

    fn cache(
        &mut self,
        wanted: api::LinuxRdt,
        shown: &mut Option<api::LinuxRdt>,
        adjust: &mut Option<api::LinuxRdt>,
    ) -> Result<()> {
        if wanted.remove {
            for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                self.owners.clear(&self.id, field, self.plugin);
            }
            *adjust = Some(api::LinuxRdt { remove: true, ..api::LinuxRdt::default() });
            *shown = None;
        }
        let (shown, adjust) = (shown.get_or_insert_default(), adjust.get_or_insert_default());
        self.value(Field::RdtClosId, wanted.clos_id, Some(&mut shown.clos_id), &mut adjust.clos_id)?;
        self.value(Field::RdtSchemata, wanted.schemata, Some(&mut shown.schemata), &mut adjust.schemata)?;
        let monitored = wanted.enable_monitoring;
        self.value(
            Field::RdtEnableMonitoring,
            monitored,
            Some(&mut shown.enable_monitoring),
            &mut adjust.enable_monitoring,
        )
    }
}
